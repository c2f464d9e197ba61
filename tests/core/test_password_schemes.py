"""Both ways to hash passwords, and the change from one to the other."""

import asyncio

import argon2
import bcrypt
import pytest
from httpx import AsyncClient
from passlib.hash import bcrypt_sha256

from app.core.passwords import hash_password, verify_password
from app.models.user import User
from tests.api.signing_in import WRONG, log_in, outcome
from tests.conftest import Serve
from tests.core.active import activate
from tests.factories import StoredUser, make_user

GOOD = "quartz-Lemon-17-violin"
BCRYPT, ARGON2ID = "$bcrypt-sha256$v=2,t=2b,r=4$", "$argon2id$v=19$m=19456,t=2,p=1$"
START = {"bcrypt": BCRYPT, "argon2id": ARGON2ID}


class TestArgon2id:
    async def test_takes_19_mib_two_passes_and_one_lane(self) -> None:
        activate(password_scheme="argon2id")

        hashed = await hash_password(GOOD)

        parameters = argon2.extract_parameters(hashed)
        assert hashed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
        assert (parameters.type, parameters.memory_cost, parameters.time_cost, parameters.parallelism) == (
            argon2.Type.ID,
            19 * 1024,
            2,
            1,
        )
        assert parameters.salt_len >= 16
        assert parameters.hash_len >= 16
        assert argon2.PasswordHasher().verify(hashed, GOOD)

    async def test_differs_each_time(self) -> None:
        activate(password_scheme="argon2id")

        assert await hash_password(GOOD) != await hash_password(GOOD)

    async def test_ignores_nothing_of_a_long_password(self) -> None:
        activate(password_scheme="argon2id")
        hashed = await hash_password("x" * 1023 + "a")

        assert (await verify_password("x" * 1023 + "a", hashed)).is_right
        assert not (await verify_password("x" * 1023 + "b", hashed)).is_right

    async def test_leaves_the_event_loop_free(self) -> None:
        activate(password_scheme="argon2id")
        hashing = asyncio.gather(*(hash_password(GOOD) for _ in range(4)))

        turns = 0
        while not hashing.done():
            await asyncio.sleep(0.001)
            turns += 1

        assert turns >= 10


@pytest.mark.parametrize("now", ["bcrypt", "argon2id"])
@pytest.mark.parametrize("then", ["bcrypt", "argon2id"])
class TestBothSchemes:
    async def test_verify_whatever_the_setting(self, then: str, now: str) -> None:
        activate(password_scheme=then)
        hashed = await hash_password(GOOD)
        activate(password_scheme=now)

        assert hashed.startswith(START[then])
        assert (await verify_password(GOOD, hashed)).is_right
        assert await verify_password(GOOD[:-1], hashed) == (False, None)

    async def test_are_renewed_only_when_the_setting_is_the_other(self, then: str, now: str) -> None:
        activate(password_scheme=then)
        hashed = await hash_password(GOOD)
        activate(password_scheme=now)

        new_hash = (await verify_password(GOOD, hashed)).new_hash

        assert (new_hash is None) == (then == now)
        assert new_hash is None or new_hash.startswith(START[now])


class TestWithoutAnAccount:
    @pytest.mark.parametrize("now", ["bcrypt", "argon2id"])
    async def test_costs_the_same(self, now: str, monkeypatch: pytest.MonkeyPatch) -> None:
        activate(password_scheme=now)
        hashed = await hash_password(GOOD)
        await verify_password(WRONG, None)
        hashings: list[str] = []
        count_hashings(monkeypatch, hashings)

        await verify_password(WRONG, hashed)
        with_account = hashings.copy()
        hashings.clear()
        await verify_password(WRONG, None)

        assert hashings == with_account == [now]

    async def test_costs_the_same_as_with_a_hash_of_a_cheaper_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        activate(password_scheme="bcrypt", bcrypt_rounds=5)
        hashed = await hash_password(GOOD)
        activate(password_scheme="bcrypt", bcrypt_rounds=8)
        await verify_password(WRONG, None)
        salts: list[bytes] = []
        hashpw = bcrypt.hashpw

        def noted(password: bytes, salt: bytes) -> bytes:
            salts.append(salt)
            return hashpw(password, salt)

        monkeypatch.setattr(bcrypt, "hashpw", noted)
        await verify_password(WRONG, hashed)
        with_account = sum(2 ** int(salt.split(b"$")[2]) for salt in salts)
        salts.clear()
        await verify_password(WRONG, None)

        assert with_account == sum(2 ** int(salt.split(b"$")[2]) for salt in salts) == 2**8


def count_hashings(monkeypatch: pytest.MonkeyPatch, hashings: list[str]) -> None:
    """Note every call of the two libraries that do the work."""
    hashpw, verify_secret = bcrypt.hashpw, argon2.low_level.verify_secret

    def noted_bcrypt(password: bytes, salt: bytes) -> bytes:
        hashings.append("bcrypt")
        return hashpw(password, salt)

    def noted_argon2(hashed: bytes, secret: bytes, kind: argon2.Type) -> bool:
        hashings.append("argon2id")
        return verify_secret(hashed, secret, kind)

    monkeypatch.setattr(bcrypt, "hashpw", noted_bcrypt)
    monkeypatch.setattr(argon2.low_level, "verify_secret", noted_argon2)


async def stored_hash(user: StoredUser) -> str:
    stored = await User.find_one({"_id": user.id})
    assert stored is not None
    return stored.hashed_password


class TestLogIn:
    async def test_renews_bcrypt_by_argon2id_and_back(self, serve: Serve) -> None:
        async with serve(password_scheme="argon2id") as client:
            ada = await make_user()
            assert (await stored_hash(ada)).startswith(BCRYPT)
            assert outcome(await log_in(client, ada)) == (200, None)
            renewed = await stored_hash(ada)
            assert outcome(await log_in(client, ada)) == (200, None)
            assert await stored_hash(ada) == renewed
            assert outcome(await log_in(client, ada, WRONG)) == (401, "invalid_credentials")

        assert renewed.startswith(ARGON2ID)
        async with serve(password_scheme="bcrypt") as client:
            assert outcome(await log_in(client, ada, WRONG)) == (401, "invalid_credentials")
            assert await stored_hash(ada) == renewed
            assert outcome(await log_in(client, ada)) == (200, None)
            assert (await stored_hash(ada)).startswith(BCRYPT)
            assert outcome(await log_in(client, ada)) == (200, None)

    async def test_lets_everybody_in_who_comes_while_the_hash_is_renewed(self, serve: Serve) -> None:
        async with serve(password_scheme="argon2id") as client:
            ada = await make_user()

            responses = await asyncio.gather(*[log_in(client, ada) for _ in range(10)])

            assert [response.status_code for response in responses] == [200] * 10
            assert (await stored_hash(ada)).startswith(ARGON2ID)


class TestRegistration:
    @pytest.mark.parametrize("scheme", ["bcrypt", "argon2id"])
    async def test_hashes_as_the_setting_says(self, serve: Serve, scheme: str) -> None:
        async with serve(password_scheme=scheme) as client:
            await register(client)
            stored = await User.find_one({"email": "ada@example.com"})

        assert stored is not None
        assert stored.hashed_password.startswith(START[scheme])
        assert scheme == "argon2id" or bcrypt_sha256.verify(GOOD, stored.hashed_password)


async def register(client: AsyncClient) -> None:
    response = await client.post("/api/v1/users", json={"email": "ada@example.com", "password": GOOD})
    assert response.status_code == 201
