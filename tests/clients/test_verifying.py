"""Access tokens in the hands of other services: they know the address of ours, and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from joserfc import jwk as joserfc_jwk
from joserfc import jwt as joserfc_jwt
from joserfc.errors import BadSignatureError

from tests.clients.conftest import Serving, example, unavailable
from tests.signing_keys import ALGORITHMS
from tests.test_server import Server, sign_up


def tampered(token: str) -> str:
    """The same with other claims."""
    header, claims, signature = token.split(".")
    changed = json.loads(jwt.utils.base64url_decode(claims)) | {"role": "superuser"}
    return f"{header}.{jwt.utils.base64url_encode(json.dumps(changed).encode()).decode()}.{signature}"


def jwks_url(server: Server) -> str:
    return f"{server.client.base_url}/.well-known/jwks.json"


def who(server: Server, token: str) -> str:
    return str(server.get("/api/v1/auth/me", token).json()["id"])


def example_environment(server: Server, algorithm: str) -> dict[str, str]:
    return {**os.environ, "OCTOPUS_URL": str(server.client.base_url).rstrip("/"), "OCTOPUS_ALGORITHM": algorithm}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
class TestAccessToken:
    @pytest.mark.filterwarnings("ignore:EdDSA is deprecated via RFC 9864")  # others do not know its new name yet
    def test_is_verified_by_joserfc(self, serving: Serving, algorithm: str) -> None:
        server = serving(algorithm)
        token = sign_up(server)
        key_set = joserfc_jwk.KeySet.import_key_set(httpx.get(jwks_url(server)).json())

        verified = joserfc_jwt.decode(token, key_set, algorithms=[algorithm])

        expected = {name: {"essential": True, "value": "octopus"} for name in ("iss", "aud")}
        joserfc_jwt.JWTClaimsRegistry(**expected).validate(verified.claims)  # type: ignore[arg-type]
        assert verified.claims["sub"] == who(server, token)
        assert [key.thumbprint() for key in key_set.keys] == [key.kid for key in key_set.keys]
        with pytest.raises(BadSignatureError):
            joserfc_jwt.decode(tampered(token), key_set, algorithms=[algorithm])

    def test_is_verified_by_the_example_for_python(self, serving: Serving, algorithm: str) -> None:
        server = serving(algorithm)
        token = sign_up(server)
        program = example("python") + (
            "import json, sys\n"
            "for token in sys.argv[1:]:\n"
            "    try:\n"
            "        print(json.dumps(claims_of(token)))\n"
            "    except jwt.PyJWTError as error:\n"
            "        print(json.dumps({'refused': type(error).__name__}))\n"
        )

        good, bad = answers_of(
            [sys.executable, "-c", program, token, tampered(token)], example_environment(server, algorithm)
        )

        assert (good["sub"], good["role"]) == (who(server, token), "user")
        assert bad == {"refused": "InvalidSignatureError"}

    def test_is_verified_by_the_example_for_node(self, serving: Serving, node_folder: Path, algorithm: str) -> None:
        server = serving(algorithm)
        token = sign_up(server)

        good, bad = answers_of(
            ["node", str(node_folder / "run.mjs"), token, tampered(token)], example_environment(server, algorithm)
        )

        assert (good["sub"], good["role"]) == (who(server, token), "user")
        assert bad == {"refused": "ERR_JWS_SIGNATURE_VERIFICATION_FAILED"}


def answers_of(command: list[str], environment: dict[str, str]) -> list[dict[str, Any]]:
    """What the program prints, line by line."""
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


class TestWithoutNode:
    def test_is_a_failure_only_where_everything_must_be_checked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CI", "true")
        with pytest.raises(pytest.fail.Exception, match="no node"):
            unavailable("no node")

        monkeypatch.delenv("CI")
        with pytest.raises(pytest.skip.Exception, match="no node"):
            unavailable("no node")
