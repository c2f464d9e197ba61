"""Passwords: what is good enough, and how they are hashed, in threads and as many at once as there are cores."""

import asyncio
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

from passlib.context import CryptContext
from passlib.hash import bcrypt_sha256
from zxcvbn import zxcvbn

from app.core.config import get_settings
from app.core.exceptions import WeakPasswordError
from app.core.metrics import PASSWORD_HASHES

MIN_LENGTH: Final = 10
MAX_LENGTH: Final = 1024
_MIN_SCORE: Final = 3
_SCORED_LENGTH: Final = 72  # the time of zxcvbn grows with the square of the length
_MIN_PERSONAL_LENGTH: Final = 3  # an "al@example.com" must not forbid every password with "al" in it

_WORD: Final = re.compile(r"[^\W_]{3,}")
_SERVICE: Final = "octopus"

T = TypeVar("T")
_threads = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="password")
# One at a time: zxcvbn keeps the words of a call where every other call finds them.
_scorer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="score")


class Verdict(NamedTuple):
    """Whether the password is right, and its new hash when the stored one was made with other settings."""

    is_right: bool
    new_hash: str | None


def personal_words(email: str, username: str | None) -> list[str]:
    """What a password of that account may not contain."""
    return [word for word in (email, email.partition("@")[0], username) if word]


async def require_strong(password: str, *, personal: Iterable[str], full_name: str | None = None) -> None:
    """Refuse a password that is too easy to guess, saying what to do; `personal` is what it may not contain.

    NIST SP 800-63B: length and guessability count, composition rules do not. The user's name and the words of the
    service are what a guesser tries first, so they count for next to nothing.
    """
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise _weak(f"Use {MIN_LENGTH} to {MAX_LENGTH} characters.")
    known = [word.casefold() for word in personal if len(word) >= _MIN_PERSONAL_LENGTH]
    if any(word in password.casefold() for word in known):
        raise _weak("Do not use your e-mail address or username in the password.")
    expected = [*known, *_words_of_service(), *_words(full_name or "")]
    scored = asyncio.get_running_loop().run_in_executor(_scorer, zxcvbn, password[:_SCORED_LENGTH], expected)
    if (result := await scored)["score"] < _MIN_SCORE:
        raise _weak(" ".join(["This password is easy to guess.", *_advice(result)]))


def _words_of_service() -> list[str]:
    settings = get_settings()
    host, issuer = urlsplit(settings.public_url).hostname or "", settings.jwt_issuer.casefold()
    return list(dict.fromkeys([_SERVICE, host, issuer, *_words(host), *_words(issuer)]))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _advice(result: dict[str, Any]) -> Iterable[str]:
    if any(match.get("dictionary_name") == "user_inputs" for match in result["sequence"]):
        yield "Leave out your name and the name of this service."
    yield from filter(None, [result["feedback"]["warning"], *result["feedback"]["suggestions"]])


async def hash_password(password: str) -> str:
    """By the scheme of the settings: bcrypt over SHA-256, so that nothing past 72 bytes is ignored, or Argon2id."""
    return await _in_thread(lambda: _present_context().hash(password))


async def verify_password(password: str, hashed: str | None) -> Verdict:
    """Check a password. Without a hash it costs the same time and is wrong: no account, no difference."""
    context = _present_context()

    def verify() -> Verdict:
        is_right, new_hash = context.verify_and_update(password, hashed or _decoy(context))
        if not is_right and hashed is not None:
            _make_up(password, hashed)
        return Verdict(is_right and hashed is not None, new_hash if hashed else None)

    return await _in_thread(verify)


def _make_up(password: str, hashed: str) -> None:
    """Take as long for a hash of a cheaper time as for one of today: what is left is `2^today - 2^then` rounds."""
    if _present_context().default_scheme() == bcrypt_sha256.name and bcrypt_sha256.identify(hashed):
        for rounds in range(bcrypt_sha256.from_string(hashed).rounds, get_settings().bcrypt_rounds):
            bcrypt_sha256.using(rounds=rounds).hash(password)


def _present_context() -> CryptContext:
    settings = get_settings()
    return _context(settings.password_scheme, settings.bcrypt_rounds)


@cache
def _context(scheme: str, rounds: int) -> CryptContext:
    """Hashes by one scheme, verifies both. Argon2id with 19 MiB, two passes (OWASP Password Storage Cheat Sheet)."""
    return CryptContext(
        schemes=["bcrypt_sha256", "argon2"],
        default={"bcrypt": "bcrypt_sha256", "argon2id": "argon2"}[scheme],
        deprecated="auto",
        bcrypt_sha256__rounds=rounds,
        argon2__type="ID",
        argon2__memory_cost=19 * 1024,
        argon2__time_cost=2,
        argon2__parallelism=1,
    )


@cache
def _decoy(context: CryptContext) -> str:
    return str(context.hash("no account has this password"))


async def _in_thread(work: Callable[[], T]) -> T:
    PASSWORD_HASHES.move(1)
    try:
        return await asyncio.get_running_loop().run_in_executor(_threads, work)
    finally:
        PASSWORD_HASHES.move(-1)


def _weak(message: str) -> WeakPasswordError:
    return WeakPasswordError(message, errors=[{"loc": ["body", "password"], "msg": message, "type": "weak_password"}])
