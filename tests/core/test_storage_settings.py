from typing import Any

import pytest
from pydantic import ValidationError

from app.core.config import Settings
from tests.conftest import ENCRYPTION_KEY, PRODUCTION, SECRET

CONNECTION = "DefaultEndpointsProtocol=https;AccountName=files;AccountKey=c2VjcmV0;EndpointSuffix=core.windows.net"
URL = "https://files.blob.core.windows.net"


def read(**values: Any) -> Settings:
    return Settings(_env_file=None, **{"environment": "test", "secret_key": SECRET, **values})


def read_in_production(**values: Any) -> Settings:
    safe = {"encryption_keys": [ENCRYPTION_KEY], "database_url": "mongodb://db.internal/octopus"}
    return read(**{**PRODUCTION, **safe, "smtp_url": "smtps://mail.example.com", **values})


class TestStorageOfUploads:
    def test_is_the_folder_unless_something_else_is_said(self) -> None:
        settings = read()

        assert settings.azure_storage_connection_string is None
        assert settings.azure_storage_account_url is None
        assert (settings.max_upload_bytes, settings.upload_redirect) == (5_368_709_120, False)

    @pytest.mark.parametrize(
        "values",
        [
            {"azure_storage_connection_string": CONNECTION},
            {"azure_storage_account_url": URL, "upload_redirect": True},
            {"azure_storage_account_url": "https://files.blob.core.chinacloudapi.cn/"},
            {"azure_storage_account_url": "http://127.0.0.1:10000/devstoreaccount1"},
        ],
    )
    def test_may_be_in_azure(self, values: dict[str, Any]) -> None:
        assert read(**values).azure_storage_container == "uploads"

    @pytest.mark.parametrize(
        ("values", "fault"),
        [
            ({"azure_storage_connection_string": CONNECTION, "azure_storage_account_url": URL}, "both set"),
            (
                {"azure_storage_connection_string": "AccountName=files;SharedAccessSignature=sv%3D1"},
                "lacks AccountName",
            ),
            ({"azure_storage_connection_string": "hunter2"}, "lacks AccountName"),
            ({"azure_storage_account_url": "files"}, "is not like"),
            ({"azure_storage_account_url": "https://files.example.com"}, "is not like"),
            ({"azure_storage_account_url": "http://127.0.0.1:10000"}, "is not like"),
            ({"azure_storage_account_url": f"{URL}?sv=2024&sig=hunter2"}, "holds a signature"),
            ({"upload_redirect": True}, "UPLOAD_REDIRECT"),
            ({"azure_storage_container": "Uploads"}, "azure_storage_container"),
            ({"azure_storage_container": "a-"}, "azure_storage_container"),
            ({"azure_storage_container": "a" * 64}, "azure_storage_container"),
            ({"max_upload_bytes": 0}, "max_upload_bytes"),
        ],
    )
    def test_is_refused_when_it_can_not_work(self, values: dict[str, Any], fault: str) -> None:
        with pytest.raises(ValidationError) as refusal:
            read(**values)

        assert fault in str(refusal.value)
        assert "hunter2" not in str(refusal.value)


class TestStorageInProduction:
    @pytest.mark.parametrize(
        "values",
        [{}, {"workers": 4}, {"azure_storage_connection_string": CONNECTION}, {"azure_storage_account_url": URL}],
    )
    def test_may_be_a_folder_or_azure(self, values: dict[str, Any]) -> None:
        assert read_in_production(**values).max_upload_bytes == 5_368_709_120

    @pytest.mark.parametrize(
        "values",
        [
            {"azure_storage_connection_string": CONNECTION.replace("https", "http")},
            {"azure_storage_connection_string": f"BlobEndpoint=http://files.example.com/;{CONNECTION}"},
            {"azure_storage_account_url": "http://files.blob.core.windows.net"},
        ],
    )
    def test_is_refused_over_a_way_without_tls(self, values: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match="sends files in clear"):
            read_in_production(**values)
