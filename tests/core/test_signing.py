import hmac
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest
from bson import ObjectId
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from jwt.utils import base64url_encode
from pydantic import ValidationError

from app.core.exceptions import InvalidTokenError, TokenExpiredError
from app.core.principal import Principal
from app.core.scopes import Role
from app.core.signing import thumbprint
from app.core.tokens import new_access_token, read_access_token
from tests.conftest import SECRET
from tests.core.active import OTHER_SECRET, activate
from tests.signing_keys import ALGORITHMS, key_file, key_of, private_pem, public_pem

USER, SESSION = ObjectId("64b7f0c2a1d3e4f5a6b7c8d9"), ObjectId("64b7f0c2a1d3e4f5a6b7c8e0")
# The examples of RFC 7638, section 3.1, and of RFC 8037, appendix A.
RSA_OF_THE_RFC = (
    "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMst"
    "n64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajr"
    "n1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
)
ED25519_OF_THE_RFC = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"


def activate_keys(folder: Path, algorithm: str, *blocks: str) -> None:
    activate(jwt_algorithm=algorithm, jwt_private_key_file=key_file(folder, *blocks))


def refusal_of(folder: Path, algorithm: str, *blocks: str) -> str:
    with pytest.raises(ValidationError) as refusal:
        activate_keys(folder, algorithm, *blocks)
    return str(refusal.value)


def token_of_ours() -> str:
    return new_access_token(Principal.of_user(USER, name="ada", role=Role.USER, session_id=SESSION))[0]


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    names = {"sub": str(USER), "sid": str(SESSION), "jti": "one", "role": "user", "scope": "users:read"}
    return {**names, "iat": now, "nbf": now, "exp": now + 60, "iss": "octopus", "aud": "octopus", **changes}


def key_id(key: Any) -> str:
    return thumbprint(key.public_key())


def by_hand(header: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """A token that no library would make."""
    body = b".".join(base64url_encode(json.dumps(part).encode()) for part in (header, claims()))
    return f"{body.decode()}.{base64url_encode(sign(body)).decode()}"


def _mac(secret: str, message: bytes) -> bytes:
    return hmac.digest(secret.encode(), message, "sha256")


class TestThumbprint:
    @pytest.mark.parametrize(
        ("jwk", "expected"),
        [
            ({"kty": "RSA", "n": RSA_OF_THE_RFC, "e": "AQAB"}, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"),
            ({"kty": "OKP", "crv": "Ed25519", "x": ED25519_OF_THE_RFC}, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"),
        ],
    )
    def test_is_the_one_of_the_standard(self, jwk: dict[str, str], expected: str) -> None:
        assert thumbprint(jwt.PyJWK(jwk, "RS256" if jwk["kty"] == "RSA" else "EdDSA").key) == expected


class TestSigning:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_names_algorithm_and_key(self, tmp_path: Path, algorithm: str) -> None:
        key = key_of(algorithm)
        activate_keys(tmp_path, algorithm, private_pem(key))

        token = token_of_ours()

        assert jwt.get_unverified_header(token) == {"typ": "JWT", "alg": algorithm, "kid": key_id(key)}
        assert jwt.decode(token, key.public_key(), [algorithm], audience="octopus")["sub"] == str(USER)
        assert read_access_token(token).session_id == SESSION

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_is_by_the_first_private_key_whatever_stands_before_it(self, tmp_path: Path, algorithm: str) -> None:
        new, old, older = (key_of(algorithm, name) for name in ("new", "old", "older"))
        activate_keys(tmp_path, algorithm, public_pem(older), private_pem(new), private_pem(old))

        assert jwt.get_unverified_header(token_of_ours())["kid"] == key_id(new)

    def test_with_a_secret_names_no_key(self) -> None:
        activate()

        assert jwt.get_unverified_header(token_of_ours()) == {"typ": "JWT", "alg": "HS256"}

    def test_reads_the_file_once(self, tmp_path: Path) -> None:
        activate_keys(tmp_path, "ES256", private_pem(key_of("ES256")))
        (tmp_path / "signing.pem").unlink()

        assert read_access_token(token_of_ours()).user_id == USER

    @pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
    def test_takes_keys_of_older_tools_and_words_between_them(self, tmp_path: Path, algorithm: str) -> None:
        key = key_of(algorithm)
        parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
        traditional = private_pem(key, PrivateFormat.TraditionalOpenSSL).replace("\n", "\r\n")

        activate_keys(tmp_path, algorithm, "Made on Monday\n", parameters, traditional)

        assert jwt.get_unverified_header(token_of_ours())["kid"] == key_id(key)


class TestVerifying:
    @pytest.mark.parametrize("as_pem", [private_pem, public_pem])
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_is_by_every_key_of_the_file(self, tmp_path: Path, algorithm: str, as_pem: Callable[[Any], str]) -> None:
        new, old = key_of(algorithm), key_of(algorithm, "old")
        activate_keys(tmp_path, algorithm, private_pem(old))
        token = token_of_ours()

        activate_keys(tmp_path, algorithm, private_pem(new), as_pem(old))

        assert read_access_token(token).user_id == USER

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_ends_when_a_key_is_gone(self, tmp_path: Path, algorithm: str) -> None:
        activate_keys(tmp_path, algorithm, private_pem(key_of(algorithm, "old")))
        token = token_of_ours()

        activate_keys(tmp_path, algorithm, private_pem(key_of(algorithm)))

        with pytest.raises(InvalidTokenError):
            read_access_token(token)

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_says_when_a_token_has_expired(self, tmp_path: Path, algorithm: str) -> None:
        key = key_of(algorithm)
        activate_keys(tmp_path, algorithm, private_pem(key))

        with pytest.raises(TokenExpiredError):
            read_access_token(jwt.encode(claims(exp=1), key, algorithm, headers={"kid": key_id(key)}))

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    @pytest.mark.parametrize("named", [None, "", "unknown", "../../dev/null", "old"])
    def test_needs_the_id_of_the_key(self, tmp_path: Path, algorithm: str, named: str | None) -> None:
        new, old = key_of(algorithm), key_of(algorithm, "old")
        activate_keys(tmp_path, algorithm, private_pem(new), public_pem(old))
        assert read_access_token(jwt.encode(claims(), new, algorithm, headers={"kid": key_id(new)}))
        header = {} if named is None else {"kid": key_id(old) if named == "old" else named}

        with pytest.raises(InvalidTokenError):
            read_access_token(jwt.encode(claims(), new, algorithm, headers=header))

    @pytest.mark.parametrize("kid", [7, ["a"], {"a": 1}, True])
    def test_refuses_an_id_that_is_no_text(self, tmp_path: Path, kid: object) -> None:
        activate_keys(tmp_path, "ES256", private_pem(key_of("ES256")))

        with pytest.raises(InvalidTokenError):
            read_access_token(by_hand({"alg": "ES256", "kid": kid}, lambda _: b"x" * 64))

    @pytest.mark.parametrize("text", ["", "a.b.c", "x", "é", "." * 1000, "eyJhbGciOiJub25lIn0.e30.", "W10.W10.W10"])
    def test_refuses_what_is_no_token(self, tmp_path: Path, text: str) -> None:
        activate_keys(tmp_path, "EdDSA", private_pem(key_of("EdDSA")))

        with pytest.raises(InvalidTokenError):
            read_access_token(text)

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    @pytest.mark.parametrize("spelling", ["none", "None", "NONE", ""])
    def test_refuses_a_token_without_a_signature(self, tmp_path: Path, algorithm: str, spelling: str) -> None:
        key = key_of(algorithm)
        activate_keys(tmp_path, algorithm, private_pem(key))

        with pytest.raises(InvalidTokenError):
            read_access_token(by_hand({"alg": spelling, "kid": key_id(key)}, lambda _: b""))

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_refuses_the_public_key_as_a_secret(self, tmp_path: Path, algorithm: str) -> None:
        key = key_of(algorithm)
        activate_keys(tmp_path, algorithm, private_pem(key), public_pem(key))
        header = {"alg": "HS256", "kid": key_id(key)}

        for secret in (public_pem(key), public_pem(key).strip()):
            with pytest.raises(InvalidTokenError):
                read_access_token(by_hand(header, partial(_mac, secret)))

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_refuses_the_secret_of_the_service(self, tmp_path: Path, algorithm: str) -> None:
        key = key_of(algorithm)
        activate_keys(tmp_path, algorithm, private_pem(key))

        for header in ({}, {"kid": key_id(key)}):
            with pytest.raises(InvalidTokenError):
                read_access_token(jwt.encode(claims(), SECRET, "HS256", headers=header))

    @pytest.mark.parametrize("theirs", ALGORITHMS)
    @pytest.mark.parametrize("ours", ALGORITHMS)
    def test_refuses_every_algorithm_but_its_own(self, tmp_path: Path, ours: str, theirs: str) -> None:
        key, foreign = key_of(ours), key_of(theirs, "foreign")
        activate_keys(tmp_path, ours, private_pem(key))

        for kid in (key_id(key), key_id(foreign)):
            with pytest.raises(InvalidTokenError):
                read_access_token(jwt.encode(claims(), foreign, theirs, headers={"kid": kid}))

    @pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256", "PS512"])
    def test_refuses_another_algorithm_of_the_same_key(self, tmp_path: Path, algorithm: str) -> None:
        key = key_of("RS256")
        activate_keys(tmp_path, "RS256", private_pem(key))

        with pytest.raises(InvalidTokenError):
            read_access_token(jwt.encode(claims(), key, algorithm, headers={"kid": key_id(key)}))

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_refuses_a_key_that_a_secret_has_taken_the_place_of(self, algorithm: str) -> None:
        activate()
        key = key_of(algorithm)

        with pytest.raises(InvalidTokenError):
            read_access_token(jwt.encode(claims(), key, algorithm, headers={"kid": key_id(key)}))

    def test_takes_no_key_from_the_token(self, tmp_path: Path) -> None:
        ours, foreign = key_of("ES256"), key_of("ES256", "foreign")
        activate_keys(tmp_path, "ES256", private_pem(ours))
        jwk = jwt.algorithms.ECAlgorithm.to_jwk(foreign.public_key(), as_dict=True)

        for header in ({"kid": key_id(ours), "jwk": jwk}, {"kid": key_id(foreign), "jku": "http://localhost/jwks"}):
            with pytest.raises(InvalidTokenError):
                read_access_token(jwt.encode(claims(), foreign, "ES256", headers=header))

    def test_with_secrets_takes_a_token_of_a_previous_one(self) -> None:
        activate()
        token = token_of_ours()

        activate(secret_key=OTHER_SECRET, previous_secret_keys=[SECRET])

        assert read_access_token(token).user_id == USER


def encrypted_pem(key: Any, form: PrivateFormat) -> str:
    return str(key.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"turnip")).decode())


class TestKeyFile:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_is_needed(self, algorithm: str) -> None:
        with pytest.raises(ValidationError, match="JWT_PRIVATE_KEY_FILE is missing"):
            activate(jwt_algorithm=algorithm)

    def test_is_refused_where_it_would_be_ignored(self, tmp_path: Path) -> None:
        assert "HS256 does not use it" in refusal_of(tmp_path, "HS256", private_pem(key_of("ES256")))

    @pytest.mark.parametrize("name", ["absent.pem", "folder", "folder/absent.pem", "x" * 300])
    def test_must_be_readable(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "folder").mkdir()

        with pytest.raises(ValidationError, match="JWT_PRIVATE_KEY_FILE can't be read: "):
            activate(jwt_algorithm="ES256", jwt_private_key_file=tmp_path / name)

    @pytest.mark.parametrize("text", ["", "\n", "no key at all", "\0\0\0"])
    def test_must_hold_a_private_key(self, tmp_path: Path, text: str) -> None:
        assert "JWT_PRIVATE_KEY_FILE holds no private key" in refusal_of(tmp_path, "ES256", text)

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_must_hold_more_than_public_keys(self, tmp_path: Path, algorithm: str) -> None:
        assert "holds no private key" in refusal_of(tmp_path, algorithm, public_pem(key_of(algorithm)))

    @pytest.mark.parametrize(
        ("algorithm", "make"),
        [
            ("RS256", lambda: ec.generate_private_key(ec.SECP256R1())),
            ("RS256", ed25519.Ed25519PrivateKey.generate),
            ("ES256", ed25519.Ed25519PrivateKey.generate),
            ("ES256", lambda: ec.generate_private_key(ec.SECP384R1())),
            ("ES256", lambda: ec.generate_private_key(ec.SECP256K1())),
            ("ES256", lambda: key_of("RS256")),
            ("EdDSA", lambda: ec.generate_private_key(ec.SECP256R1())),
            ("EdDSA", ed448.Ed448PrivateKey.generate),
        ],
    )
    @pytest.mark.parametrize("as_pem", [private_pem, public_pem])
    def test_must_hold_only_keys_of_its_algorithm(
        self, tmp_path: Path, algorithm: str, make: Callable[[], Any], as_pem: Callable[[Any], str]
    ) -> None:
        refusal = refusal_of(tmp_path, algorithm, private_pem(key_of(algorithm)), as_pem(make()))

        assert "block 2 of JWT_PRIVATE_KEY_FILE is no " in refusal
        assert "block 1" not in refusal

    @pytest.mark.parametrize("as_pem", [private_pem, public_pem])
    @pytest.mark.parametrize("bits", [1024, 2047])
    def test_must_hold_no_short_key(self, tmp_path: Path, bits: int, as_pem: Callable[[Any], str]) -> None:
        short = rsa.generate_private_key(65537, bits)

        refusal = refusal_of(tmp_path, "RS256", private_pem(key_of("RS256")), as_pem(short))

        assert f"block 2 of JWT_PRIVATE_KEY_FILE is an RSA key of {bits} bits, less than 2048" in refusal

    def test_must_be_whole(self, tmp_path: Path) -> None:
        new, old = private_pem(key_of("EdDSA")), private_pem(key_of("EdDSA", "old"))
        cut = old.partition("-----END")[0]

        for blocks in ([new, cut], [cut, new]):
            assert "a PEM block without an end" in refusal_of(tmp_path, "EdDSA", *blocks)

    def test_must_be_intact(self, tmp_path: Path) -> None:
        lines = private_pem(key_of("RS256")).splitlines(keepends=True)

        assert "block 1 of JWT_PRIVATE_KEY_FILE is no key" in refusal_of(tmp_path, "RS256", *lines[:5], *lines[9:])

    @pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
    def test_must_open_without_a_passphrase(self, tmp_path: Path, form: PrivateFormat) -> None:
        locked = encrypted_pem(key_of("ES256"), form)

        assert "block 1 of JWT_PRIVATE_KEY_FILE is no key" in refusal_of(tmp_path, "ES256", locked)

    def test_must_hold_nothing_that_is_no_key(self, tmp_path: Path) -> None:
        certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
        foreign = private_pem(x25519.X25519PrivateKey.generate())

        refusal = refusal_of(tmp_path, "ES256", private_pem(key_of("ES256")), certificate, foreign)

        assert "block 2 of JWT_PRIVATE_KEY_FILE is no key" in refusal
        assert "block 3 of JWT_PRIVATE_KEY_FILE is no key" in refusal

    def test_is_never_repeated_in_a_refusal(self, tmp_path: Path) -> None:
        lines = [line for key in ("RS256", "ES256") for line in private_pem(key_of(key)).splitlines()[1:-1]]

        refusals = [
            refusal_of(tmp_path, "EdDSA", private_pem(key_of("RS256")), private_pem(key_of("ES256"))),
            refusal_of(tmp_path, "RS256", private_pem(key_of("RS256"))[:-30]),
        ]
        with pytest.raises(ValidationError) as refusal:  # the key itself, where its file belongs
            activate(jwt_algorithm="ES256", jwt_private_key_file=private_pem(key_of("ES256")))

        assert not [line for line in lines for text in [*refusals, str(refusal.value)] if line in text]

    def test_is_in_no_description_of_the_settings(self, tmp_path: Path) -> None:
        pem = private_pem(key_of("EdDSA"))
        settings = activate(jwt_algorithm="EdDSA", jwt_private_key_file=key_file(tmp_path, pem))

        described = repr(settings) + repr(settings.token_keys) + str(settings.model_dump())

        assert pem.splitlines()[1] not in described
        assert "Ed25519PrivateKey" not in described


class TestPublishedKeys:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_are_all_keys_of_the_file_once_and_in_its_order(self, tmp_path: Path, algorithm: str) -> None:
        new, old = key_of(algorithm), key_of(algorithm, "old")
        path = key_file(tmp_path, public_pem(old), private_pem(new), public_pem(new), private_pem(old))

        published = activate(jwt_algorithm=algorithm, jwt_private_key_file=path).token_keys.published

        assert [jwk["kid"] for jwk in published] == [key_id(old), key_id(new)]
        assert [jwt.PyJWK(jwk).key for jwk in published] == [old.public_key(), new.public_key()]

    def test_are_none_under_a_secret(self) -> None:
        assert activate().token_keys.published == ()
