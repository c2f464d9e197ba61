"""Make a key for JWT_PRIVATE_KEY_FILE: `python3 scripts/generate_signing_key.py --algorithm ES256 --out signing.pem`.

Without `--out` it goes to standard output, and nothing is stored. A file that exists is never overwritten.
"""

import argparse
import os
import sys
from pathlib import Path

import environment

RSA_BITS = 3072


def main() -> None:
    environment.enter()
    options = _options()
    pem = _new_key(options.algorithm)
    if options.out is None:
        print(pem, end="")
        return
    try:
        descriptor = os.open(options.out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        sys.exit(f"{options.out}: {error.strerror}")
    with os.fdopen(descriptor, "w") as file:
        file.write(pem)
    print(f"JWT_ALGORITHM={options.algorithm}\nJWT_PRIVATE_KEY_FILE={options.out.resolve()}")


def _new_key(algorithm: str) -> str:
    """A private key as PEM (PKCS #8)."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat  # noqa: PLC0415

    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
    if algorithm == "RS256":
        key = rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
    elif algorithm == "ES256":
        key = ec.generate_private_key(ec.SECP256R1())
    else:
        key = ed25519.Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=["RS256", "ES256", "EdDSA"], default="ES256", help="default: ES256")
    parser.add_argument("--out", type=Path, help="the file to make, readable by its owner only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
