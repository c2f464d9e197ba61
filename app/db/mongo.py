"""How the database is reached: one client, transactions, and the one-batch read of the hot paths."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

from beanie import init_beanie
from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo import AsyncMongoClient, WriteConcern
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConnectionFailure, ExecutionTimeout, OperationFailure, PyMongoError
from pymongo.monitoring import CommandListener

from app.core import background
from app.core.context import current_context
from app.core.exceptions import DatabaseUnavailableError
from app.core.tasks import is_cancelled
from app.db.migrator import Schema, ensure_schema
from app.db.presence import DEFAULT_DATABASE, SERVICE, database_of, shown_name
from app.db.restore_state import require_whole
from app.db.schema import DOCUMENT_MODELS, ensure_indexes, has_indexes

Raw = dict[str, Any]
P = ParamSpec("P")
R = TypeVar("R")

# A request must be answered within 5 s when the database is gone or frozen. The worst case is an answer that does not
# come, a server chosen anew, and a handshake that is not answered.
_CLIENT_OPTIONS: Final[Mapping[str, Any]] = {
    "tz_aware": True,
    "retryWrites": True,
    "serverSelectionTimeoutMS": 1500,
    "connectTimeoutMS": 1500,
    "socketTimeoutMS": 1500,
    "waitQueueTimeoutMS": 1500,
    # A connection that can't be opened counts as overload for the driver, which would wait for it three times over.
    "maxAdaptiveRetries": 0,
}
_DURABLE: Final = WriteConcern("majority", j=True)
_TRANSACTION_SECONDS: Final = 3.0
_RELEASE_SECONDS: Final = 60.0  # by then the server has ended it itself
_RELEASE_EVERY_SECONDS: Final = 0.5
_FIRST_BACKOFF_SECONDS: Final = 0.005
_LONGEST_BACKOFF_SECONDS: Final = 0.5
# The hot paths render every time as UTC, so the driver need not attach a zone to each.
# One that no `datetime` can hold, which only a stranger can have stored, must not keep a row from being read.
NAIVE_UTC: Final = CodecOptions[Raw](tz_aware=False, datetime_conversion=DatetimeConversion.DATETIME_AUTO)

# What the server says when one document would hold more than 16 MB.
_TOO_LARGE: Final = frozenset({4568, 10334, 17420})


_database: AsyncDatabase[Raw] | None = None
# Transactions of this process that have met another are run again one at a time: a crowd of them would go on meeting.
_retries = asyncio.Lock()
# What waits for the commit of the transaction under way; none outside of one.
_waiting: ContextVar[list[Callable[[], None]] | None] = ContextVar("waiting_for_commit", default=None)


@asynccontextmanager
async def connected(
    url: str, *, migrates: bool = True, listeners: Sequence[CommandListener] = ()
) -> AsyncIterator[AsyncDatabase[Raw]]:
    """Connect, bind the documents and see to the schema and the indexes; disconnect at the end.

    `migrates`: bring a schema that is older than the code up to date, rather than refuse it.
    The database is the one that the URL names, else `octopus`. The listeners hear of every command. `SchemaError` when
    its schema can't be used.
    """
    global _database, _retries  # noqa: PLW0603 - Beanie binds documents to one database a process
    name = shown_name(SERVICE, database_of(url))
    client: AsyncMongoClient[Raw] = AsyncMongoClient(url, appname=name, event_listeners=[*listeners], **_CLIENT_OPTIONS)
    try:
        _retries = asyncio.Lock()
        # Not even a write concern that the URL asks for: the driver sends it inside of transactions too when the
        # session is bound, and the server refuses that. Its own default is the majority, journaled.
        _database = client.get_default_database(DEFAULT_DATABASE, write_concern=WriteConcern())
        await require_whole(_database)
        await init_beanie(_database, document_models=DOCUMENT_MODELS, skip_indexes=True)
        if not (await Schema.of(_database)).is_current or not await has_indexes(_database):
            async with patient(url) as database:
                await ensure_schema(database, migrates=migrates)
                await ensure_indexes(database)
        yield _database
    finally:
        _database = None
        await client.close()


@asynccontextmanager
async def patient(url: str) -> AsyncIterator[AsyncDatabase[Raw]]:
    """The same database for what may take longer than a request may wait: building indexes, migrating."""
    async with AsyncMongoClient[Raw](url, tz_aware=True, appname=shown_name(SERVICE, database_of(url))) as client:
        database = client.get_default_database(DEFAULT_DATABASE)
        await require_whole(database)
        yield database


def get_database() -> AsyncDatabase[Raw]:
    if _database is None:
        raise RuntimeError("The database is not connected.")
    return _database


async def is_answering() -> bool:
    """Whether the database answers a ping."""
    try:
        await get_database().command("ping")
    except (PyMongoError, RuntimeError):
        return False
    return True


async def find_batch(
    collection: str,
    where: Raw,
    *,
    fields: Raw | None = None,
    sort: Raw | None = None,
    limit: int,
    is_lasting: bool = False,
) -> list[Raw]:
    """At most `limit` raw documents, times naive in UTC, in one exchange with the server.

    `is_lasting`: as the majority of the servers has them.

    Half the cost of the driver's cursor, which hot paths feel. More than the 16 MB of one answer is read
    by such a cursor after all.
    """
    command = {"find": collection, "filter": where, "limit": limit, "batchSize": limit}
    if fields:
        command["projection"] = fields
    if sort:
        command["sort"] = sort
    if is_lasting:
        command["readConcern"] = {"level": "majority"}
    cursor = (await get_database().command(command, codec_options=NAIVE_UTC))["cursor"]
    if cursor["id"] == 0:
        batch: list[Raw] = cursor["firstBatch"]
        return batch
    await get_database().command({"killCursors": collection, "cursors": [cursor["id"]]})
    found = get_database().get_collection(collection, codec_options=NAIVE_UTC).find(where, fields, limit=limit)
    return await found.sort(sort).to_list() if sort else await found.to_list()


async def aggregate(collection: str, pipeline: list[Raw], *, seconds: float | None) -> list[Raw] | None:
    """Everything that a pipeline gives, which must be bounded; times naive in UTC.

    None when the server takes longer than so many seconds over it.
    """
    found = get_database().get_collection(collection, codec_options=NAIVE_UTC)
    bound: Raw = {} if seconds is None else {"maxTimeMS": int(seconds * 1000)}
    try:
        return await (await found.aggregate(pipeline, **bound)).to_list()
    except ExecutionTimeout:
        return None


async def find_below(
    parents: str, parent: Raw, collection: str, where: Raw, *, sort: Raw, limit: int
) -> list[Raw] | None:
    """As `find_batch`, as long as there is such a parent; none when there is not. One exchange for both questions."""
    below = [{"$match": where}, {"$sort": sort}, {"$limit": limit}]
    pipeline = [
        {"$match": parent},
        {"$project": {"_id": 1}},
        {"$lookup": {"from": collection, "pipeline": below, "as": "below"}},
    ]
    try:
        answer = await get_database().command(
            {"aggregate": parents, "pipeline": pipeline, "cursor": {}}, codec_options=NAIVE_UTC
        )
    except OperationFailure as error:
        if error.code not in _TOO_LARGE:
            raise
        has_parent = await find_batch(parents, parent, fields={"_id": 1}, limit=1)
        return await find_batch(collection, where, sort=sort, limit=limit) if has_parent else None
    found = answer["cursor"]["firstBatch"]
    return found[0]["below"] if found else None


def transactional(work: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Make every write of the function stand or fall together; run the whole function again on a conflict.

    The session is bound to the task, so nothing passes it around. Keep hashing and other slow work outside.
    As the driver's `with_transaction`, but it gives up after 3 s, not 120, because a client is waiting, and then
    raises `DatabaseUnavailableError`.
    """

    @wraps(work)
    async def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if _waiting.get() is not None:
            raise RuntimeError("A transaction is already open.")
        callbacks: list[Callable[[], None]] = []
        mark = _waiting.set(callbacks)
        session, is_given_up = get_database().client.start_session(), False
        try:
            async with session.bind(end_session=False), asyncio.timeout(_TRANSACTION_SECONDS):
                result = await _until_committed(session, callbacks, work, *args, **kwargs)
        except (TimeoutError, ConnectionFailure) as error:
            # Killed on the server and never ended here: ended, it could be another request's before it is killed.
            is_given_up = True
            background.start(_release(session.session_id), name="release_transaction")
            raise DatabaseUnavailableError from error
        finally:
            _waiting.reset(mark)
            if not is_given_up:
                await session.end_session()
        for callback in callbacks:
            callback()
        return result

    return run


def after_commit(callback: Callable[[], None]) -> None:
    """Call it once the transaction under way is committed, never when it fails; at once outside of one."""
    waiting = _waiting.get()
    if waiting is None:
        callback()
    else:
        waiting.append(callback)


async def _until_committed(
    session: AsyncClientSession,
    callbacks: list[Callable[[], None]],
    work: Callable[P, Awaitable[R]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """The result of the first attempt that meets nobody."""
    try:
        return await _attempt(session, work, *args, **kwargs)
    except PyMongoError as error:
        _require_transient(error)
    backoff = _FIRST_BACKOFF_SECONDS
    async with _retries:
        # The driver may swallow the cancellation by which the time-out ends this.
        while not is_cancelled():
            callbacks.clear()
            try:
                return await _attempt(session, work, *args, **kwargs)
            except PyMongoError as error:
                _require_transient(error)
            await asyncio.sleep(random.random() * backoff)  # noqa: S311 - not a secret
            backoff = min(backoff * 1.5, _LONGEST_BACKOFF_SECONDS)
    raise asyncio.CancelledError


def _require_transient(error: PyMongoError) -> None:
    """Raise what running the transaction again would not mend."""
    if not error.has_error_label("TransientTransactionError"):
        raise error


async def _release(session_id: Mapping[str, Any]) -> None:
    """End a transaction that was given up without the server's hearing of it.

    Otherwise a server that was only slow to answer keeps what it has written locked for a minute.
    """
    give_up_at = time.monotonic() + _RELEASE_SECONDS
    while time.monotonic() < give_up_at:
        try:
            await get_database().client.admin.command({"killSessions": [{"id": session_id["id"]}]})
        except ConnectionFailure:
            await asyncio.sleep(_RELEASE_EVERY_SECONDS)
        else:
            return


async def _attempt(
    session: AsyncClientSession, work: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs
) -> R:
    async with await session.start_transaction(write_concern=_DURABLE):
        if (in_transaction := current_context().in_transaction) is not None:
            await in_transaction()
        result = await work(*args, **kwargs)
        while True:
            try:
                await session.commit_transaction()
            except PyMongoError as error:
                if not error.has_error_label("UnknownTransactionCommitResult"):
                    raise
            else:
                return result
