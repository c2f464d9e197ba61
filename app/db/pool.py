"""The connections of this process to the database."""

from typing import NamedTuple

from app.db.mongo import get_database


class Pool(NamedTuple):
    in_use: int
    idle: int
    awaited: int


def current_pool() -> Pool:
    """The connections of this process, to all servers."""
    # The driver tells of them only in events, which would cost every command more than this costs once a scrape.
    servers = get_database().client._topology._servers.values()  # noqa: SLF001
    in_use = sum(server.pool.active_sockets for server in servers)
    asked_for = sum(server.pool.requests for server in servers)
    return Pool(in_use, sum(len(server.pool.conns) for server in servers), max(0, asked_for - in_use))
