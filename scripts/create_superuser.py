"""Make a superuser: `python3 scripts/create_superuser.py`, also while the service runs.

It asks for what is missing. For a pipeline: `--email ada@example.com --password-stdin < password-file`.
A password is never an argument: other users of the machine can read those.
"""

import argparse
import getpass
import sys

import environment


def main() -> None:
    environment.enter()
    import service  # noqa: PLC0415 - importable only inside the environment

    options = _options()
    email = options.email or input("E-mail: ")
    service.run(_create(email, options.username, _password(from_stdin=options.password_stdin)))


async def _create(email: str, username: str | None, password: str) -> None:
    from pydantic import ValidationError  # noqa: PLC0415

    from app.core.principal import Principal  # noqa: PLC0415
    from app.core.scopes import Role  # noqa: PLC0415
    from app.schemas.user import UserCreate  # noqa: PLC0415
    from app.services import user_service  # noqa: PLC0415

    try:
        body = UserCreate(email=email, username=username, password=password)
    except ValidationError as error:
        sys.exit("\n".join(f"{issue['loc'][0]}: {issue['msg']}" for issue in error.errors()))
    user = await user_service.register(body, by=Principal.system("create_superuser"), role=Role.SUPERUSER)
    print(f"Superuser {user.email} is made: id {user.id}. Sign in with POST /api/v1/auth/login.")


def _password(*, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        sys.exit("The two passwords differ.")
    return password


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--email")
    parser.add_argument("--username")
    parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    return parser.parse_args()


if __name__ == "__main__":
    main()
