from typing import Literal

from app.schemas.base import ResponseBody


class JsonWebKey(ResponseBody):
    """A public key (RFC 7517): `n` and `e` of RSA, `crv`, `x` and `y` of a curve."""

    kty: Literal["RSA", "EC", "OKP"]
    kid: str
    use: Literal["sig"]
    alg: Literal["RS256", "ES256", "EdDSA"]
    n: str | None = None
    e: str | None = None
    crv: str | None = None
    x: str | None = None
    y: str | None = None


class JsonWebKeySet(ResponseBody):
    keys: list[JsonWebKey]
