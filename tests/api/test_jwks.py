import base64
from pathlib import Path
from typing import Any

import jwt
import pytest
from httpx import AsyncClient

from tests.conftest import Serve
from tests.factories import SignedInUser, make_signed_in, make_user
from tests.signing_keys import ALGORITHMS, key_file, key_of, private_pem, public_pem

JWKS = "/.well-known/jwks.json"
MEMBERS = {
    "RS256": {"kty", "n", "e"},
    "ES256": {"kty", "crv", "x", "y"},
    "EdDSA": {"kty", "crv", "x"},
}


def number(text: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(text + "=="), "big")


class TestJwks:
    async def test_is_empty_under_a_secret(self, client: AsyncClient) -> None:
        response = await client.get(JWKS)

        assert (response.status_code, response.json()) == (200, {"keys": []})

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    async def test_verifies_the_tokens_of_this_service(self, serve: Serve, tmp_path: Path, algorithm: str) -> None:
        pem = key_file(tmp_path, private_pem(key_of(algorithm)), public_pem(key_of(algorithm, "old")))
        async with serve(jwt_algorithm=algorithm, jwt_private_key_file=pem) as client:
            ada = await make_user()
            login = {"email": ada.document.email, "password": ada.password}
            token = (await client.post("/api/v1/auth/login", json=login)).json()["access_token"]
            published = (await client.get(JWKS)).json()

        key_set = jwt.PyJWKSet.from_dict(published)
        claims = jwt.decode(token, key_set[jwt.get_unverified_header(token)["kid"]], audience="octopus")
        assert claims["sub"] == str(ada.id)
        assert len(key_set.keys) == 2

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    async def test_holds_nothing_private(self, serve: Serve, tmp_path: Path, algorithm: str) -> None:
        pem = key_file(tmp_path, private_pem(key_of(algorithm)), private_pem(key_of(algorithm, "old")))
        async with serve(jwt_algorithm=algorithm, jwt_private_key_file=pem) as client:
            published = (await client.get(JWKS)).json()

        assert len(published["keys"]) == 2
        for jwk in published["keys"]:
            assert jwk.keys() == MEMBERS[algorithm] | {"kid", "use", "alg"}
            assert (jwk["use"], jwk["alg"]) == ("sig", algorithm)

    async def test_holds_the_numbers_of_the_key(self, serve: Serve, tmp_path: Path) -> None:
        numbers = key_of("RS256").public_key().public_numbers()
        async with serve(
            jwt_algorithm="RS256", jwt_private_key_file=key_file(tmp_path, private_pem(key_of("RS256")))
        ) as client:
            (jwk,) = (await client.get(JWKS)).json()["keys"]

        assert (number(jwk["n"]), number(jwk["e"])) == (numbers.n, numbers.e)

    async def test_may_be_kept_for_five_minutes(self, client: AsyncClient) -> None:
        response = await client.get(JWKS)

        assert response.headers["cache-control"] == "public, max-age=300"
        assert response.headers["content-type"] == "application/json"

    async def test_is_limited_as_strangers_are(self, serve: Serve) -> None:
        async with serve(rate_limit_anonymous="2/day") as client:
            statuses = [(await client.get(JWKS)).status_code for _ in range(3)]

        assert statuses == [200, 200, 429]


class Rotation:
    """A service that is started again with another key file, over the same database."""

    def __init__(self, serve: Serve, folder: Path, algorithm: str) -> None:
        self.serve, self.folder, self.algorithm = serve, folder, algorithm

    def key(self, name: str) -> Any:
        return key_of(self.algorithm, name)

    async def step(self, *blocks: str, tokens: list[str]) -> tuple[list[int], int, str]:
        """How it answers these tokens, how many keys it publishes, and a token that it makes."""
        path = key_file(self.folder, *blocks)
        async with self.serve(jwt_algorithm=self.algorithm, jwt_private_key_file=path) as client:
            user = await make_signed_in()
            answers = [await client.get("/api/v1/auth/me", headers=bearer(token)) for token in tokens]
            published = (await client.get(JWKS)).json()["keys"]
        return [answer.status_code for answer in answers], len(published), user.access_token


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class TestRotation:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    async def test_refuses_nobody_until_the_old_key_is_removed(
        self, serve: Serve, tmp_path: Path, algorithm: str
    ) -> None:
        service = Rotation(serve, tmp_path, algorithm)
        new, old = service.key("new"), service.key("old")
        kids = {name: (await self._kid(serve, tmp_path, algorithm, key)) for name, key in (("new", new), ("old", old))}

        _, published_at_first, first = await service.step(private_pem(old), tokens=[])
        announced = await service.step(private_pem(old), private_pem(new), tokens=[first])
        moved = await service.step(private_pem(new), public_pem(old), tokens=[first, announced[2]])
        tokens = [first, announced[2], moved[2]]
        kept = await service.step(private_pem(new), public_pem(old), tokens=tokens)
        removed = await service.step(private_pem(new), tokens=tokens)

        assert [jwt.get_unverified_header(token)["kid"] for token in tokens] == [kids["old"], kids["old"], kids["new"]]
        assert (published_at_first, announced[:2]) == (1, ([200], 2))
        assert moved[:2] == ([200, 200], 2)
        assert kept[:2] == ([200, 200, 200], 2)
        assert removed[:2] == ([401, 401, 200], 1)

    async def _kid(self, serve: Serve, folder: Path, algorithm: str, key: Any) -> str:
        path = key_file(folder, private_pem(key))
        async with serve(jwt_algorithm=algorithm, jwt_private_key_file=path) as client:
            return str((await client.get(JWKS)).json()["keys"][0]["kid"])

    async def test_from_a_secret_to_a_key_pair_needs_a_refresh(self, serve: Serve, tmp_path: Path) -> None:
        async with serve():
            ada: SignedInUser = await make_signed_in()
        path = key_file(tmp_path, private_pem(key_of("EdDSA")))
        async with serve(jwt_algorithm="EdDSA", jwt_private_key_file=path) as client:
            refused = await client.get("/api/v1/auth/me", headers=ada.headers)
            pair = await client.post("/api/v1/auth/refresh", json={"refresh_token": ada.refresh_token})
            accepted = await client.get("/api/v1/auth/me", headers=bearer(pair.json()["access_token"]))

        assert (refused.status_code, refused.json()["code"]) == (401, "invalid_token")
        assert (pair.status_code, accepted.status_code) == (200, 200)
