"""Make a superuser, or let one in again: `python3 scripts/create_superuser.py`, also while the service runs.

It asks for what is missing. For a pipeline: `--email ada@example.com --password-stdin < password-file`.
A password is never an argument: other users of the machine can read those.

`--reset-password` gives a superuser that exists a new password, ends its sessions and unlocks it.
`--disable-mfa` turns the second factor of any account off, when authenticator and recovery codes are lost.
"""

import argparse
import getpass
import sys
from collections.abc import Coroutine

import environment


def main() -> None:
    environment.enter()
    import service  # noqa: PLC0415 - importable only inside the environment

    options = _options()
    try:
        work = _asked_for(options)
    except EOFError:
        sys.exit("Nobody is there to ask: say --email, and --password-stdin.")
    service.run(work)


def _asked_for(options: argparse.Namespace) -> Coroutine[None, None, None]:
    email = options.email or input("E-mail: ")
    if not (options.reset_password or options.disable_mfa):
        return _create(email, options.username, _password(from_stdin=options.password_stdin))
    password = _password(from_stdin=options.password_stdin) if options.reset_password else None
    return _let_in(email, password, disable_mfa=options.disable_mfa)


async def _create(email: str, username: str | None, password: str) -> None:
    from pydantic import ValidationError  # noqa: PLC0415

    from app.core.clock import utc_now  # noqa: PLC0415
    from app.core.principal import Principal  # noqa: PLC0415
    from app.core.scopes import Role  # noqa: PLC0415
    from app.schemas.user import UserCreate  # noqa: PLC0415
    from app.services import user_service  # noqa: PLC0415

    try:
        body = UserCreate(email=email, username=username, password=password)
    except ValidationError as error:
        sys.exit("\n".join(f"{issue['loc'][0]}: {issue['msg']}" for issue in error.errors()))
    known = {"is_verified": True, "first_verified_at": utc_now()}  # the operator answers for the address
    user = await user_service.register(body, by=Principal.system("create_superuser"), role=Role.SUPERUSER, **known)
    print(f"Superuser {user.email} is made: id {user.id}. Sign in with POST /api/v1/auth/login.")


async def _let_in(email: str, password: str | None, *, disable_mfa: bool) -> None:
    from app.core.normalise import name_key  # noqa: PLC0415
    from app.core.principal import Principal  # noqa: PLC0415
    from app.crud import crud_user  # noqa: PLC0415
    from app.schemas.user import UserUpdate  # noqa: PLC0415
    from app.services import mfa_service, user_service  # noqa: PLC0415

    user, operator = await crud_user.find_by_email_key(name_key(email)), Principal.system("create_superuser")
    if user is None:
        sys.exit(f"There is no account with the address {email}.")
    if password is not None and not user.is_superuser:
        sys.exit(f"{email} is no superuser; its owner can have a new password mailed.")
    if password is not None:
        await user_service.update(user.id, UserUpdate(password=password), versions=None, by=operator)
        print(f"{user.email} has a new password; its sessions have ended.")
    if disable_mfa and user.mfa_enabled:
        await mfa_service.turn_off_for(user, by=operator)
        print(f"{user.email} signs in without a second factor now.")
    elif disable_mfa:
        print(f"{user.email} has no second factor.")


def _password(*, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        sys.exit("The two passwords differ.")
    return password


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--email")
    parser.add_argument("--username")
    parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    parser.add_argument("--reset-password", action="store_true", help="give a superuser that exists a new password")
    parser.add_argument("--disable-mfa", action="store_true", help="turn the second factor of an account off")
    parser.add_argument("--password", nargs="?", action=_RefusePassword, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.password_stdin and not options.email:
        # What is asked for would come from the same place: the password would be taken for the address, and printed.
        parser.error("--password-stdin needs --email")
    return options


class _RefusePassword(argparse.Action):
    """Says so without the password, which argparse would print, into the log of a pipeline."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error("a password is never an argument, others could read it: --password-stdin takes it")


if __name__ == "__main__":
    main()
