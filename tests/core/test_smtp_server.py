from typing import Any

import pytest
from pydantic import ValidationError

from app.core.config import Settings
from app.core.smtp_server import SmtpServer
from tests.conftest import ENCRYPTION_KEY, SECRET

PASSWORD = "tr0mb0ne"


def faults_of(smtp_url: str, environment: str = "production") -> str:
    with pytest.raises(ValidationError) as refusal:
        settings_with(smtp_url, environment)
    return str(refusal.value)


def settings_with(smtp_url: str, environment: str = "production") -> Settings:
    values: dict[str, Any] = {
        "environment": environment,
        "secret_key": SECRET,
        "encryption_keys": [ENCRYPTION_KEY],
        "database_url": "mongodb://db.internal/octopus",
        "bootstrap_token": "tok-9f2b7c41d8-3e",
        "public_url": "https://octopus.example",
        "smtp_url": smtp_url,
    }
    return Settings(_env_file=None, **values)


class TestParsing:
    @pytest.mark.parametrize(
        ("url", "host", "port"),
        [
            ("smtp://mail.example.com", "mail.example.com", 587),
            ("smtp://mail.example.com/", "mail.example.com", 587),
            ("smtp://mail.example.com:25", "mail.example.com", 25),
            ("smtps://mail.example.com", "mail.example.com", 465),
            ("smtps://mail.example.com:4465", "mail.example.com", 4465),
            ("smtp://[2001:db8::25]:2525", "2001:db8::25", 2525),
        ],
    )
    def test_reads_host_and_port(self, url: str, host: str, port: int) -> None:
        server = SmtpServer.parse(url)

        assert (server.host, server.port) == (host, port)
        assert (server.username, server.password) == (None, None)

    def test_reads_what_is_percent_encoded(self) -> None:
        server = SmtpServer.parse("smtp://ada%40example.com:p%40ss%2Fw%3Ard%25%3F%23@mail.example.com")

        assert (server.username, server.password) == ("ada@example.com", "p@ss/w:rd%?#")

    @pytest.mark.parametrize(
        ("url", "is_tls", "starttls"),
        [
            ("smtp://mail.example.com", False, None),  # where the server has it
            ("smtp://mail.example.com?starttls=1", False, True),
            ("smtp://mail.example.com?starttls=0", False, False),
            ("smtp://ada:tr0mb0ne@mail.example.com", False, True),
            ("smtp://ada:tr0mb0ne@mail.example.com?starttls=0", False, False),
            ("smtps://ada:tr0mb0ne@mail.example.com", True, False),
        ],
    )
    def test_knows_when_tls_begins(self, url: str, *, is_tls: bool, starttls: bool | None) -> None:
        server = SmtpServer.parse(url)

        assert (server.is_tls, server.starttls) == (is_tls, starttls)

    @pytest.mark.parametrize(
        ("url", "is_in_clear"),
        [
            ("smtp://ada:tr0mb0ne@mail.example.com?starttls=0", True),
            ("smtp://ada:tr0mb0ne@mail.example.com", False),
            ("smtps://ada:tr0mb0ne@mail.example.com", False),
            ("smtp://mail.example.com?starttls=0", False),  # nothing to hide
        ],
    )
    def test_knows_when_the_password_goes_in_clear(self, url: str, *, is_in_clear: bool) -> None:
        assert SmtpServer.parse(url).sends_password_in_clear is is_in_clear


class TestFaults:
    @pytest.mark.parametrize(
        "url",
        [
            "mail.example.com",
            "mail.example.com:25",
            "http://mail.example.com",
            "smtp://",
            "smtp://:25",
            "smtp://mail.example.com:harbour",
            "smtp://mail.example.com:99999",
            "smtp://mail.example.com/inbox",
            "smtp://[mail.example.com",
            # a password that is not percent-encoded
            "smtp://ada:tr0mb0ne/7@mail.example.com",
            "smtp://ada:tr0mb0ne#7@mail.example.com",
            "smtp://ada:tr0mb0ne?7@mail.example.com",
            "smtp://ada:tr0mb0ne\u2100@mail.example.com",
            # half of what a login needs
            "smtp://ada@mail.example.com",
            "smtp://:tr0mb0ne@mail.example.com",
            # a wish for TLS that must not be passed over in silence
            "smtp://mail.example.com?starttls=yes",
            "smtp://mail.example.com?starttls=true",
            "smtp://mail.example.com?start_tls=1",
            "smtps://mail.example.com?starttls=1",
        ],
    )
    def test_are_refused_without_repeating_the_password(self, url: str) -> None:
        fault = faults_of(url, "test")

        assert "smtp_url" in fault
        assert PASSWORD not in fault

    def test_of_a_password_in_clear_refuses_production(self) -> None:
        fault = faults_of("smtp://ada:tr0mb0ne@mail.example.com?starttls=0")

        assert "SMTP_URL sends its password in clear" in fault
        assert PASSWORD not in fault

    @pytest.mark.parametrize(
        "url",
        [
            "smtp://mail.example.com",  # TLS where the server has it is none where somebody between says it has none
            "smtp://mail.example.com?starttls=0",
            "smtp://10.0.0.25:25",
            "smtp://[2001:db8::25]",
            "smtp://localhost.example.com",
            "smtp://nolocalhost",
        ],
    )
    def test_of_mails_in_clear_refuse_production(self, url: str) -> None:
        assert "SMTP_URL sends mails, and the links in them, in clear" in faults_of(url)

    @pytest.mark.parametrize(
        "url",
        [
            "smtp://mail.example.com?starttls=1",
            "smtps://mail.example.com",
            "smtp://localhost:25",
            "smtp://mail.LOCALHOST",
            "smtp://[::1]:25",
        ],
    )
    def test_of_mails_in_clear_are_none_with_tls_or_on_one_machine(self, url: str) -> None:
        assert settings_with(url).smtp_url is not None

    @pytest.mark.parametrize("environment", ["test", "staging"])
    def test_of_a_password_in_clear_may_be_elsewhere(self, environment: str) -> None:
        assert settings_with("smtp://ada:tr0mb0ne@mail.example.com?starttls=0", environment).smtp_url is not None

    @pytest.mark.parametrize("url", ["smtp://ada:tr0mb0ne@mail.example.com", "smtps://ada:tr0mb0ne@mail.example.com"])
    def test_are_none_with_tls(self, url: str) -> None:
        settings = settings_with(url)

        assert settings.smtp_url is not None
        assert PASSWORD not in repr(settings)
