"""Make a fresh mongod with a keyfile a replica set of one with two users. Safe to repeat; `docker compose` calls it.

It must run on the machine of the mongod, or in its network: before there is a user, a server lets only those in.
The passwords are read from the files `admin-password` and `password` of a folder: `admin` is for operators, `octopus`
for the service.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import environment

if TYPE_CHECKING:
    from pymongo import MongoClient

WAIT_SECONDS: Final = 60
ALREADY_INITIALIZED, UNAUTHORIZED, USER_EXISTS = 23, 13, 51003
# Of all databases, since a backup may be restored to another one for a look (`--to-database`).
ROLES: Final = ["readWriteAnyDatabase", "dbAdminAnyDatabase", "clusterMonitor"]


def main() -> None:
    environment.enter()
    from pymongo import MongoClient  # noqa: PLC0415 - importable only inside the environment
    from pymongo.errors import PyMongoError  # noqa: PLC0415

    options = _options()
    admin, octopus = (options.secrets.joinpath(name).read_text() for name in ("admin-password", "password"))
    try:
        with MongoClient[dict[str, Any]]("127.0.0.1", options.port, directConnection=True) as client:
            _initiate(client, options.member)
            _wait_for_primary(client)
            _make_user(client, "admin", admin, ["root"])
        with MongoClient[dict[str, Any]](
            "127.0.0.1", options.port, directConnection=True, username="admin", password=admin
        ) as client:
            _make_user(client, "octopus", octopus, ROLES)
    except PyMongoError as error:
        sys.exit(f"The database can't be made ready: {error}")
    print("The replica set is ready.")


def _initiate(client: "MongoClient[dict[str, Any]]", member: str) -> None:
    config = {"_id": "rs0", "members": [{"_id": 0, "host": member}]}
    _unless(client, {"replSetInitiate": config}, {ALREADY_INITIALIZED, UNAUTHORIZED})


def _wait_for_primary(client: "MongoClient[dict[str, Any]]") -> None:
    give_up_at = time.monotonic() + WAIT_SECONDS
    while not client.admin.command("hello")["isWritablePrimary"]:
        if time.monotonic() > give_up_at:
            sys.exit("The replica set has no primary; the log of the mongod says why.")
        time.sleep(0.1)


def _make_user(client: "MongoClient[dict[str, Any]]", name: str, password: str, roles: list[str]) -> None:
    """Make the user unless there is one. The first one ends the time in which a server needs no password."""
    _unless(client, {"createUser": name, "pwd": password, "roles": roles}, {UNAUTHORIZED, USER_EXISTS})


def _unless(client: "MongoClient[dict[str, Any]]", command: dict[str, Any], done: set[int]) -> None:
    """Run the command, unless what it says is that it was run before."""
    from pymongo.errors import OperationFailure  # noqa: PLC0415

    try:
        client.admin.command(command)
    except OperationFailure as error:
        if error.code not in done:
            raise


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--member", required=True, help="under which host:port others reach the mongod")
    parser.add_argument("--secrets", required=True, type=Path, help="the folder of the passwords")
    parser.add_argument("--port", type=int, default=27017, help="where the mongod listens here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
