"""A request that is sent twice under one key is carried out once, and gets its first answer again.

The record of a request is changed by the very transaction that does what the request asks for. So of two that
believe to be the only one, one commits; and whether a process that died had committed is known.
"""

import asyncio
import hashlib
import hmac
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, NamedTuple

import orjson
from bson import ObjectId
from cryptography.fernet import InvalidToken

from app.core import background
from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.exceptions import ConflictError, IdempotencyInProgressError, IdempotencyKeyReusedError
from app.crud import crud_idempotency
from app.db.mongo import after_commit
from app.models.enums import IdempotencyState
from app.models.idempotency_record import IdempotencyRecord

MAX_ANSWER_BYTES: Final = 2 * 1024 * 1024
_KEPT: Final = timedelta(hours=24)
_HOLD: Final = timedelta(seconds=60)
_PROLONGED_IN_TIME: Final = 3  # times in each hold, so that one that fails is none too many
_END_EVERY_SECONDS: Final = 0.5
_PURPOSE: Final = "idempotent request"
_LOST: Final = "This request was carried out, but its answer was lost. Look for what it has made."
_SMALL_BYTES: Final = 64 * 1024  # up to here a thread costs more than the encryption


class Answer(NamedTuple):
    """What goes out to the caller, as it went out the first time."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass
class Attempt:
    """One try to carry a request out."""

    record_id: bytes
    holder: ObjectId
    has_committed: bool = False

    async def mark(self) -> None:
        """Inside of each transaction of the request, before all else. `IdempotencyInProgressError` without the hold.

        So whoever would take its place, or let it go, waits for what becomes of the transaction.
        """
        if self.has_committed:
            return
        if not await crud_idempotency.mark_committed(self.record_id, self.holder):
            raise IdempotencyInProgressError
        after_commit(self._note)

    def _note(self) -> None:
        self.has_committed = True


async def begin(caller: str, key: str, request: bytes) -> Attempt | Answer:
    """Claim the request of that caller, or give the answer it got before.

    `request` is everything that tells it from another. `IdempotencyKeyReusedError` when the key was used for another
    request, `IdempotencyInProgressError` while the first is under way, `ConflictError` when it was carried out by a
    process that ended before it could answer.
    """
    now = utc_now()
    record = IdempotencyRecord(
        id=hashlib.sha256(f"{caller}\0{key}".encode()).digest(),
        fingerprint=get_settings().keyring.mac(_PURPOSE, request),
        holder=ObjectId(),
        until=now + _HOLD,
        expires_at=now + _KEPT,
    )
    known = list(get_settings().keyring.macs(_PURPOSE, request))
    try:
        before = await crud_idempotency.claim(record, fingerprints=known)
    except Exception:  # the database is away; the claim may be stored all the same, and nobody works under it
        background.start(end_at_last(Attempt(record.id, record.holder), None), name="end_of_idempotent_request")
        raise
    if before is None:
        return Attempt(record.id, record.holder)
    if not any(hmac.compare_digest(before.fingerprint, mac) for mac in known):
        raise IdempotencyKeyReusedError
    if before.answer is not None:
        return await _answer_of(before.answer)
    if before.state is IdempotencyState.COMMITTED and before.until <= now:
        raise ConflictError(_LOST)
    raise IdempotencyInProgressError


async def _answer_of(sealed: bytes) -> Answer:
    try:
        return _opened(await _with_cipher("decrypt", sealed))
    except InvalidToken as error:  # its key is no longer among ENCRYPTION_KEYS: nobody can read it
        raise ConflictError(_LOST) from error


async def prolong(attempt: Attempt) -> None:
    """Wait for a part of the hold, then hold the request as long as if it had begun only now."""
    await asyncio.sleep(_HOLD.total_seconds() / _PROLONGED_IN_TIME)
    await crud_idempotency.prolong(attempt.record_id, attempt.holder, until=utc_now() + _HOLD)


async def finish(attempt: Attempt, answer: Answer) -> None:
    """Keep the answer for a day, when the request has changed something or has succeeded.

    A request that was refused and changed nothing may be sent again. Nor is an error of ours an answer to keep: when
    something was changed all the same, a repetition is told so.
    """
    is_error = answer.status >= 500 or len(answer.body) > MAX_ANSWER_BYTES  # noqa: PLR2004
    if not is_error and (attempt.has_committed or answer.status < 400):  # noqa: PLR2004
        await crud_idempotency.keep_answer(
            attempt.record_id, attempt.holder, await _with_cipher("encrypt", _sealed(answer))
        )
    else:
        await release(attempt)


async def release(attempt: Attempt) -> None:
    """Let the request be sent again, unless it has changed something: then let a repetition be told so."""
    await crud_idempotency.release(attempt.record_id, attempt.holder)


async def end_at_last(attempt: Attempt, answer: Answer | None) -> None:
    """Keep the answer, or without one release the attempt, as soon as the database is there again.

    For as long as a repetition would otherwise have to wait for the hold.
    """
    give_up_at = time.monotonic() + _HOLD.total_seconds()
    while time.monotonic() < give_up_at:
        try:
            await (release(attempt) if answer is None else finish(attempt, answer))
        except Exception:  # noqa: BLE001 - the database is away
            await asyncio.sleep(_END_EVERY_SECONDS)
        else:
            return


def _sealed(answer: Answer) -> bytes:
    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in answer.headers]
    return orjson.dumps([answer.status, headers]) + b"\n" + answer.body


def _opened(sealed: bytes) -> Answer:
    head, _, body = sealed.partition(b"\n")
    status, headers = orjson.loads(head)
    return Answer(status, [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers], body)


async def _with_cipher(work: str, data: bytes) -> bytes:
    do: Any = getattr(get_settings().cipher, work)
    result: bytes = do(data) if len(data) <= _SMALL_BYTES else await asyncio.to_thread(do, data)
    return result
