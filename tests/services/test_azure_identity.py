"""Storage under a managed identity: a real Azurite that takes tokens over TLS, and an endpoint that gives them out."""

import hmac
import json
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Thread
from unittest.mock import AsyncMock
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.core.clock import utc_now
from app.core.stored_object import key_of, new_stem
from app.services.azure_calls import OPTIONS
from app.services.azure_storage import AzureStorage
from tests.azurite_server import AzuriteServer, running_azurite
from tests.services.storages import chunks_of, random_bytes, read_all

HEADER = "of-this-machine"
KEY, OTHER = key_of(new_stem()), key_of(new_stem())
# What is signed, in its order; the fourth is the name of the blob.
SIGNED = (
    *(
        "sp",
        "st",
        "se",
        "",
        "skoid",
        "sktid",
        "skt",
        "ske",
        "sks",
        "skv",
        "saoid",
        "suoid",
        "scid",
        "skdutid",
        "sduoid",
    ),
    *("sip", "spr", "sv", "sr", "", "ses", "", "", "rscc", "rscd", "rsce", "rscl", "rsct"),
)


class IdentityEndpoint(BaseHTTPRequestHandler):
    """What a host of Azure offers to what runs on it (App Service, 2019-08-01)."""

    def do_GET(self) -> None:
        resource = parse_qs(urlsplit(self.path).query).get("resource", [""])[0]
        is_known = self.headers["X-IDENTITY-HEADER"] == HEADER and resource == "https://storage.azure.com"
        now = int(time.time())
        claims = {"aud": resource, "iss": "https://sts.windows.net/t/", "iat": now, "nbf": now - 60, "exp": now + 3600}
        token = jwt.encode({**claims, "oid": "identity", "tid": "tenant"}, "nobody verifies this key, 32 bytes")
        body = json.dumps({"access_token": token, "expires_on": str(now + 3600), "resource": resource})
        self.send_response(200 if is_known else 401)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode() if is_known else b"{}")

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), IdentityEndpoint) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://127.0.0.1:{server.server_port}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", HEADER)
        yield
        server.shutdown()


@pytest.fixture
def tls(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for this machine, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "azurite")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(utc_now() - timedelta(days=1))
        .not_valid_after(utc_now() + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return tmp_path / "cert.pem", tmp_path / "key.pem"


@pytest.fixture
def azurite(tls: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[AzuriteServer]:
    certificate, key = (str(path) for path in tls)
    monkeypatch.setitem(OPTIONS, "connection_verify", certificate)
    with running_azurite("--oauth", "basic", "--cert", certificate, "--key", key) as server:
        yield server


@pytest.fixture
async def storage(azurite: AzuriteServer, identity: None) -> AsyncIterator[AzureStorage]:  # noqa: ARG001
    storage = AzureStorage.of_account(azurite.url, "uploads")
    yield storage
    await storage.close()


class TestManagedIdentity:
    async def test_reads_and_writes(self, storage: AzureStorage) -> None:
        content = random_bytes(5_000_000)

        await storage.write(KEY, chunks_of(content))

        assert await read_all(storage.read(KEY)) == content
        assert [found.key async for found in storage.objects()] == [KEY]

    async def test_signs_links_with_a_key_that_azure_lends(self, storage: AzureStorage) -> None:
        """Azurite verifies only an older form of such links, so this is the formula of Azure's documentation."""
        expires_at = utc_now() + timedelta(days=7)

        url = await storage.signed_url(KEY, expires_at=expires_at, content_type="image/png", disposition="inline")
        target = await storage.direct_upload(OTHER, expires_at=expires_at)

        lent = storage._links._lent
        assert lent is not None
        assert lent.value is not None
        for link, key, permission in ((url, KEY, "r"), (target.url, OTHER, "c")):
            assert urlsplit(link).path == f"/devstoreaccount1/uploads/{key}"
            query = {name: values[0] for name, values in parse_qs(urlsplit(link).query).items()}
            assert (query["sp"], query["skoid"], query["spr"]) == (permission, "identity", "https")
            signed = [query.get(name, "") for name in SIGNED]
            signed[3] = f"/blob/devstoreaccount1/uploads/{key}"
            code = hmac.digest(b64decode(lent.value), "\n".join(signed).encode(), "sha256")
            assert b64encode(code).decode() == query["sig"]

    async def test_borrows_a_key_only_when_the_last_one_ends_too_soon(
        self, storage: AzureStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        borrow = AsyncMock(wraps=storage._service.get_user_delegation_key)
        monkeypatch.setattr(storage._service, "get_user_delegation_key", borrow)

        async def sign(days: int) -> None:
            expires_at = utc_now() + timedelta(days=days)
            await storage.signed_url(KEY, expires_at=expires_at, content_type="image/png", disposition="inline")

        counts = []
        for days in (1, 6, 2):
            await sign(days)
            counts.append(borrow.await_count)
        storage._links._lent_until = utc_now() + timedelta(days=3)
        await sign(6)

        assert counts == [1, 1, 1]
        assert borrow.await_count == 2
