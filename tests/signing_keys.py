"""Key pairs of tests. Each is made once for a process: one of RSA takes a while."""

from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

ALGORITHMS = ("RS256", "ES256", "EdDSA")


@cache
def key_of(algorithm: str, name: str = "new") -> Any:
    """The private key that tests call by this name."""
    assert name
    if algorithm == "RS256":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else ed25519.Ed25519PrivateKey.generate()


def private_pem(key: Any, form: PrivateFormat = PrivateFormat.PKCS8) -> str:
    return str(key.private_bytes(Encoding.PEM, form, NoEncryption()).decode())


def public_pem(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def key_file(folder: Path, *blocks: str) -> Path:
    """A file of these blocks, the one that the settings name."""
    path = folder / "signing.pem"
    path.write_text("".join(blocks))
    return path
