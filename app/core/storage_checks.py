"""Settings of the storage that contradict each other, or that can't work."""

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from app.core.network import is_loopback

if TYPE_CHECKING:
    from app.core.config import Settings


def faults_of_storage(settings: "Settings") -> list[str]:
    """Every reason not to start, in the words of the variables. None of them holds a secret."""
    connection, url = settings.azure_storage_connection_string, settings.azure_storage_account_url
    if connection is not None and url is not None:
        return ["AZURE_STORAGE_CONNECTION_STRING and AZURE_STORAGE_ACCOUNT_URL are both set; one says where files are"]
    faults = []
    if connection is not None:
        faults += _faults_of_connection(connection.get_secret_value())
    if url is not None:
        faults += _faults_of_url(url)
    if settings.upload_redirect and connection is None and url is None:
        faults.append("UPLOAD_REDIRECT is on, but a folder has no address to redirect to")
    return faults


def faults_of_storage_in_production(settings: "Settings") -> list[str]:
    if _sends_in_clear(settings):
        return ["AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_ACCOUNT_URL sends files in clear; use https://"]
    return []


def _sends_in_clear(settings: "Settings") -> bool:
    connection = settings.azure_storage_connection_string
    if connection is not None:
        parts = _parts_of(connection.get_secret_value())
        endpoint = parts.get("blobendpoint", "")
        return endpoint.startswith("http:") or parts.get("defaultendpointsprotocol", "https") != "https"
    return (settings.azure_storage_account_url or "").startswith("http:")


def _faults_of_connection(connection: str) -> list[str]:
    parts = _parts_of(connection)
    if not parts.get("accountname") or not parts.get("accountkey"):
        return ["AZURE_STORAGE_CONNECTION_STRING lacks AccountName or AccountKey, which signs links"]
    return []


def _faults_of_url(url: str) -> list[str]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    # Of another name Azure's client can't tell the account, which is part of every link's signature.
    has_account = ".blob.core." in host or (is_loopback(host) and parts.path.strip("/"))
    if parts.scheme not in {"http", "https"} or not has_account:
        return ["AZURE_STORAGE_ACCOUNT_URL is not like https://account.blob.core.windows.net"]
    if parts.query:
        return ["AZURE_STORAGE_ACCOUNT_URL holds a signature; the identity of this machine is used instead"]
    return []


def _parts_of(connection: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in connection.split(";"))
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
