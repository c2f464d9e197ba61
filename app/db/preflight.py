"""Whether the database of the settings can be used at all, in words for whoever has written DATABASE_URL."""

from typing import Any, Final

from pymongo import MongoClient
from pymongo.errors import ConfigurationError, ConnectionFailure, InvalidURI, OperationFailure, PyMongoError

from app.db.presence import DEFAULT_DATABASE

_PATIENCE_MS: Final = 5000
_REFUSED: Final = frozenset({8000, 18, 13})  # Atlas, authentication failed, unauthorised


def fault_of_url(url: str) -> str | None:
    """What is wrong with the URL as it is written; nobody is asked. Never a word of it: that may be of the password."""
    try:
        MongoClient[dict[str, Any]](url, connect=False).close()
    except (ConfigurationError, ValueError) as error:
        return _told(error)
    return None


def fault_of_database(url: str) -> str | None:
    """Why there is no starting; none when the database answers. Never a word of the URL but its hosts."""
    try:
        with MongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=_PATIENCE_MS, connectTimeoutMS=2000) as client:
            return _fault_of(client)
    except (ConfigurationError, ValueError) as error:
        return _told(error)


def _told(error: Exception) -> str:
    if isinstance(error, InvalidURI | ValueError):
        return "DATABASE_URL: is no URL of MongoDB; a user and a password in it must be percent-encoded"
    return "DATABASE_URL: can't be used; is the host right, and are the options?"


def _fault_of(client: MongoClient[dict[str, Any]]) -> str | None:
    try:
        said = client.admin.command("hello")
        client.get_default_database(DEFAULT_DATABASE).command("ping")
    except OperationFailure as error:
        if error.code in _REFUSED:
            return f"DATABASE_URL: {_hosts(client)} refuses the user or the password"
        return f"DATABASE_URL: {_hosts(client)} refuses to answer (error {error.code})"
    except ConnectionFailure:
        return (
            f"DATABASE_URL: no server that takes writes answers at {_hosts(client)} within {_PATIENCE_MS // 1000} s. "
            "Does it run, can it be reached from here, and is the name of its replica set right?"
        )
    except PyMongoError as error:
        return f"DATABASE_URL: {_hosts(client)} can't be used ({type(error).__name__})"
    if "setName" not in said and said.get("msg") != "isdbgrid":
        return (
            f"DATABASE_URL: {_hosts(client)} is no replica set, and transactions need one; one server is enough for it"
        )
    return None


def _hosts(client: MongoClient[dict[str, Any]]) -> str:
    return ", ".join(sorted(f"{host}:{port}" for host, port in client.topology_description.server_descriptions()))
