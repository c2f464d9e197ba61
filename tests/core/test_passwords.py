import asyncio
import hashlib
import sys
import time
from collections.abc import Iterator

import bcrypt
import pytest
from passlib.hash import bcrypt_sha256

from app.core.exceptions import WeakPasswordError
from app.core.passwords import hash_password, require_strong, verify_password
from tests.core.active import activate

GOOD = "quartz-Lemon-17-violin"
LONG = "k9$Vq2!xTz" + "".join(hashlib.sha256(bytes([number])).hexdigest() for number in range(16))


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.fixture(autouse=True)
def _settings() -> None:
    activate()


class TestRequireStrong:
    @pytest.mark.parametrize("password", [GOOD, "k9$Vq2!xTz", "correct horse battery staple", "ünïcødé-schön-42"])
    async def test_accepts_what_is_hard_to_guess(self, password: str) -> None:
        await require_strong(password, personal=[])

    @pytest.mark.parametrize(
        "password",
        ["", "k9$Vq2!xT", "password123", "qwertyuiop", "aaaaaaaaaaaaaaaaaaaa", "1234567890", "January2020", GOOD * 60],
    )
    async def test_refuses_what_is_short_long_or_easy_to_guess(self, password: str) -> None:
        with pytest.raises(WeakPasswordError) as refusal:
            await require_strong(password, personal=[])

        assert refusal.value.code == "weak_password"
        assert [(error["loc"], error["type"]) for error in refusal.value.errors] == [
            (["body", "password"], "weak_password")
        ]

    @pytest.mark.parametrize("length", [10, 1024])
    async def test_accepts_both_ends_of_the_range(self, length: int) -> None:
        await require_strong(LONG[:length], personal=[])

    @pytest.mark.parametrize(
        ("personal", "password"),
        [
            ("ada@example.com", "Zr8!ada@example.com-quartz"),
            ("Lovelace", "quartz-LOVELACE-17-violin"),
            ("STRASSE", "quartz-straße-17-violin"),
        ],
    )
    async def test_refuses_what_holds_a_name_in_any_case(self, personal: str, password: str) -> None:
        await require_strong(password, personal=["somebody@else.example"])

        with pytest.raises(WeakPasswordError):
            await require_strong(password, personal=["somebody", personal])

    async def test_minds_no_name_of_a_few_letters(self) -> None:
        await require_strong("quartz-Lemon-al-17-violin", personal=["al", ""])

    @pytest.mark.parametrize(
        "password",
        [
            "Octopus2026",
            "0ct0pus2026",
            "octopus-1234",
            "Tidewater2026",  # of the host
            "id.tidewater.example",
            "Quillfeather9",  # of the issuer
            "Vandersteen1815",  # of the name
            "marguerite-1815",
        ],
    )
    async def test_refuses_what_is_little_more_than_a_word_of_the_context(self, password: str) -> None:
        activate(public_url="https://id.tidewater.example:8443/octopus", jwt_issuer="https://quillfeather.example")

        with pytest.raises(WeakPasswordError) as refusal:
            await require_strong(password, personal=[], full_name="Marguerite Al Van-der Vandersteen")

        message = str(refusal.value.errors[0]["msg"])
        assert message.startswith("This password is easy to guess. Leave out your name and the name of this service.")
        assert "Add another word or two." in message

    @pytest.mark.parametrize(
        "password", ["quillfeather2026", "vandersteen-1815-x", "tidewater-violin-9", "octopus quartz Lemon violin"]
    )
    async def test_minds_no_word_of_another_context_nor_among_others(self, password: str) -> None:
        await require_strong(password, personal=[], full_name="Al Lovelace")

    async def test_minds_in_a_crowd_the_words_of_each_alone(self, hasty_threads: None) -> None:  # noqa: ARG002
        names = ["Vandersteen", "Marguerite"] * 100

        verdicts = await asyncio.gather(
            *(require_strong("vandersteen2815", personal=[], full_name=name) for name in names), return_exceptions=True
        )

        assert [isinstance(verdict, WeakPasswordError) for verdict in verdicts] == [True, False] * 100

    async def test_never_repeats_the_password(self) -> None:
        with pytest.raises(WeakPasswordError) as refusal:
            await require_strong("dragonfly1", personal=[])

        assert "dragonfly1" not in str(refusal.value) + str(refusal.value.errors)

    async def test_is_not_stalled_by_a_long_password(self) -> None:
        started = time.monotonic()

        await require_strong(LONG[:1024], personal=["ada@example.com"])

        assert time.monotonic() - started < 2


class TestHashPassword:
    async def test_is_bcrypt_over_sha_256_at_the_configured_cost(self) -> None:
        activate(bcrypt_rounds=5)

        hashed = await hash_password(GOOD)

        assert bcrypt_sha256.verify(GOOD, hashed)
        assert bcrypt_sha256.from_string(hashed).rounds == 5

    async def test_differs_each_time(self) -> None:
        activate()

        assert await hash_password(GOOD) != await hash_password(GOOD)

    async def test_leaves_the_event_loop_free(self) -> None:
        activate(bcrypt_rounds=10)
        hashing = asyncio.gather(*(hash_password(GOOD) for _ in range(2)))

        turns = 0
        while not hashing.done():
            await asyncio.sleep(0.001)
            turns += 1

        assert turns >= 10


class TestVerifyPassword:
    async def test_knows_the_right_one(self) -> None:
        activate()
        hashed = await hash_password(GOOD)

        assert await verify_password(GOOD, hashed) == (True, None)

    @pytest.mark.parametrize("other", ["", "quartz-lemon-17-violin", GOOD + " ", GOOD[:-1]])
    async def test_knows_a_wrong_one(self, other: str) -> None:
        activate()

        assert await verify_password(other, await hash_password(GOOD)) == (False, None)

    async def test_ignores_nothing_past_72_bytes(self) -> None:
        activate()
        hashed = await hash_password("x" * 72 + "a")

        assert (await verify_password("x" * 72 + "a", hashed)).is_right
        assert not (await verify_password("x" * 72 + "b", hashed)).is_right

    async def test_accepts_any_bytes(self) -> None:
        activate()
        hashed = await hash_password("zero\0byte-ünd-漢字")

        assert (await verify_password("zero\0byte-ünd-漢字", hashed)).is_right
        assert not (await verify_password("zero\0byte", hashed)).is_right

    async def test_is_wrong_without_an_account(self) -> None:
        activate()

        assert await verify_password("no account has this password", None) == (False, None)

    async def test_hashes_as_often_without_an_account(self, monkeypatch: pytest.MonkeyPatch) -> None:
        activate(bcrypt_rounds=4)
        hashed = await hash_password(GOOD)
        await verify_password("wrong", None)
        hashings: list[bytes] = []
        original = bcrypt.hashpw

        def counted(password: bytes, salt: bytes) -> bytes:
            hashings.append(salt[:7])
            return original(password, salt)

        monkeypatch.setattr(bcrypt, "hashpw", counted)
        await verify_password("wrong", hashed)
        with_account = hashings.copy()
        hashings.clear()
        await verify_password("wrong", None)

        assert hashings == with_account == [b"$2b$04$"]

    @pytest.mark.parametrize(("then", "now"), [(4, 6), (6, 4)])
    async def test_renews_a_hash_of_another_cost(self, then: int, now: int) -> None:
        activate(bcrypt_rounds=then)
        old = await hash_password(GOOD)
        activate(bcrypt_rounds=now)

        verdict = await verify_password(GOOD, old)

        assert verdict.is_right
        assert verdict.new_hash is not None
        assert bcrypt_sha256.from_string(verdict.new_hash).rounds == now
        assert await verify_password(GOOD, verdict.new_hash) == (True, None)

    async def test_does_not_renew_a_hash_for_a_wrong_password(self) -> None:
        activate(bcrypt_rounds=5)
        old = await hash_password(GOOD)
        activate(bcrypt_rounds=4)

        assert await verify_password("wrong", old) == (False, None)
