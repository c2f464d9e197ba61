"""Who is connected to a database. Our clients show to the server what they are, and of which database."""

from typing import Any, Final

from pymongo import MongoClient
from pymongo.errors import OperationFailure
from pymongo.uri_parser import parse_uri

SERVICE: Final = "octopus"
RESTORE: Final = "octopus-restore"
BACKUP: Final = "octopus-backup"
MARK: Final = "/"  # behind it stands which one of its kind it is; no name of a database holds one
DEFAULT_DATABASE: Final = "octopus"


def shown_name(kind: str, database: str) -> str:
    return f"{kind}:{database}"


def database_of(url: str) -> str:
    """The database that a URL names.

    The driver says which, for it reads URLs in its own way: a `#` or a `[` may stand in a password. Nobody is asked,
    neither for the servers that a name of DNS stands for; the options, of which some need such a name, say nothing.
    """
    plain = url.partition("?")[0].replace("mongodb+srv://", "mongodb://", 1)
    return str(parse_uri(plain)["database"] or DEFAULT_DATABASE)


def clients_of(client: MongoClient[dict[str, Any]], database: str) -> set[tuple[str, str]]:
    """The names and addresses of the services and restores that are connected, idle ones included.

    Where this user may not know of others: those that are connected as this user. An `OperationFailure` where it may
    not even know that.
    """
    try:
        shown = _connections(client, of_all_users=True)
    except OperationFailure:
        shown = _connections(client, of_all_users=False)
    names = {shown_name(kind, database) for kind in (SERVICE, RESTORE)}
    return {(name, address) for name, address in shown if name.partition(MARK)[0] in names}


def _connections(client: MongoClient[dict[str, Any]], *, of_all_users: bool) -> list[tuple[str, str]]:
    """The name that each shows, and its host."""
    found = client.admin.aggregate(
        [
            {"$currentOp": {"idleConnections": True, "allUsers": of_all_users}},
            {"$match": {"appName": {"$exists": True}}},
            {"$project": {"appName": 1, "client": 1}},
        ]
    )
    return [(each["appName"], each.get("client", "").rpartition(":")[0]) for each in found]
