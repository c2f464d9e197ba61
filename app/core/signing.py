"""What signs access tokens: a secret of this service's own, or key pairs whose public halves others verify with."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from app.core.keyring import Keyring

SECRETS_ALGORITHM: Final = "HS256"
MIN_RSA_BITS: Final = 2048
_KIND_OF: Final = {"RS256": "RSA", "ES256": "P-256", "EdDSA": "Ed25519"}
_MEMBERS: Final = {"RSA": ("kty", "n", "e"), "EC": ("kty", "crv", "x", "y"), "OKP": ("kty", "crv", "x")}

PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey
PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
Jwk = dict[str, str]

_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s.*?-----END \1-----", re.DOTALL)
_PARAMETERS: Final = b"EC PARAMETERS"  # what `openssl ecparam -genkey` writes before a key; the key repeats it


class SigningKeyError(ValueError):
    """The file can't sign. Says what is wrong with it, and nothing of what is in it."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """The current secret signs, previous ones verify too. Nothing is published, and no token names its key."""

    keyring: Keyring
    algorithm: ClassVar[str] = SECRETS_ALGORITHM
    published: ClassVar[tuple[Jwk, ...]] = ()

    def sign(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self.keyring.signing_secret, self.algorithm)

    def keys_for(self, token: str) -> Sequence[bytes]:  # noqa: ARG002 - a token does not say under which secret
        return self.keyring.secrets


@dataclass(frozen=True, slots=True)
class KeyPairs:
    """One private key signs; its public half and those of the others verify, each under its id."""

    algorithm: str
    key_id: str
    private_key: PrivateKey = field(repr=False)
    public_keys: Mapping[str, PublicKey] = field(repr=False)

    def sign(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self.private_key, self.algorithm, headers={"kid": self.key_id})

    def keys_for(self, token: str) -> Sequence[PublicKey]:
        """The one key that the token names, if it is ours. What is no token is a `jwt.PyJWTError`."""
        key = self.public_keys.get(jwt.get_unverified_header(token).get("kid", ""))
        return [] if key is None else [key]

    @property
    def published(self) -> tuple[Jwk, ...]:
        """The public keys as JWKs (RFC 7517), the way other services want them."""
        return tuple(
            {**_members(key), "kid": key_id, "use": "sig", "alg": self.algorithm}
            for key_id, key in self.public_keys.items()
        )


TokenKeys = Secrets | KeyPairs


def read_key_file(path: Path | None, algorithm: str) -> KeyPairs:
    """The keys of a PEM file: the first private one signs, all verify. `SigningKeyError` when it can't serve."""
    found = _keys_of(_text_of(path, algorithm))
    if faults := [fault for number, key in found.items() if (fault := _fault(number, key, algorithm))]:
        raise SigningKeyError("; ".join(faults))
    keys = [key for key in found.values() if key is not None]
    private_key = next((key for key in keys if isinstance(key, PrivateKey)), None)
    if private_key is None:
        raise SigningKeyError("JWT_PRIVATE_KEY_FILE holds no private key")
    public_keys = {thumbprint(key): key for key in map(_public, keys)}
    return KeyPairs(algorithm, thumbprint(private_key.public_key()), private_key, public_keys)


def thumbprint(key: PublicKey) -> str:
    """The id of a key, the same wherever it is computed (RFC 7638)."""
    canonical = json.dumps(_members(key), separators=(",", ":"), sort_keys=True)
    return base64.urlsafe_b64encode(hashlib.sha256(canonical.encode()).digest()).rstrip(b"=").decode()


def _text_of(path: Path | None, algorithm: str) -> bytes:
    if path is None:
        raise SigningKeyError(
            f"JWT_PRIVATE_KEY_FILE is missing, which {algorithm} needs; scripts/generate_signing_key.py makes one"
        )
    try:
        return path.read_bytes()
    except OSError as error:  # its path is not repeated: somebody may have put the key itself there
        raise SigningKeyError(f"JWT_PRIVATE_KEY_FILE can't be read: {error.strerror}") from None


def _keys_of(text: bytes) -> dict[int, PrivateKey | PublicKey | None]:
    """The keys by the number of their block; none for what is no key, or none that is known."""
    blocks = list(_BLOCK.finditer(text))
    if len(blocks) != text.count(b"-----BEGIN "):
        raise SigningKeyError("JWT_PRIVATE_KEY_FILE has a PEM block without an end")
    return {number: _key_of(block) for number, block in enumerate(blocks, start=1) if block[1] != _PARAMETERS}


def _key_of(block: re.Match[bytes]) -> PrivateKey | PublicKey | None:
    try:
        is_private = block[1].endswith(b"PRIVATE KEY")
        key = load_pem_private_key(block[0], None) if is_private else load_pem_public_key(block[0])
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, PrivateKey | PublicKey) else None


def _fault(number: int, key: PrivateKey | PublicKey | None, algorithm: str) -> str | None:
    name = f"block {number} of JWT_PRIVATE_KEY_FILE"
    if key is None:
        return f"{name} is no key that can be read: RSA, P-256 or Ed25519, as PEM without a passphrase"
    public = _public(key)
    if algorithm == "RS256" and isinstance(public, RSAPublicKey):
        is_short = public.key_size < MIN_RSA_BITS
        return f"{name} is an RSA key of {public.key_size} bits, less than {MIN_RSA_BITS}" if is_short else None
    if algorithm == "ES256" and isinstance(public, EllipticCurvePublicKey) and isinstance(public.curve, SECP256R1):
        return None
    if algorithm == "EdDSA" and isinstance(public, Ed25519PublicKey):
        return None
    return f"{name} is no {_KIND_OF[algorithm]} key, which {algorithm} needs"


def _public(key: PrivateKey | PublicKey) -> PublicKey:
    return key.public_key() if isinstance(key, PrivateKey) else key


def _members(key: PublicKey) -> Jwk:
    """What makes the key up, and nothing else: the members that its thumbprint is of."""
    if isinstance(key, RSAPublicKey):
        jwk = RSAAlgorithm.to_jwk(key, as_dict=True)
    elif isinstance(key, EllipticCurvePublicKey):
        jwk = ECAlgorithm.to_jwk(key, as_dict=True)
    else:
        jwk = OKPAlgorithm.to_jwk(key, as_dict=True)
    return {name: jwk[name] for name in _MEMBERS[jwk["kty"]]}
