import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.core import config
from app.core.config import Settings, get_settings, use_settings

SECRET = "Rz5pGx0MwYb7TqVn3KdLf8HjCs1EuAo6"
OLD, OLDER = "Old0ne8fG3kLmQ7zXc5Vb1Nn2Ma4Ss6D", "Older7yHj2KpRw9TzQx4Vb6Nm1Lc3SdF"
KEY = "octopus_Ab3dEf9H_0123456789abcdefghijABCDEFGHIJKL0qpSxx"
SAFE: dict[str, Any] = {
    "environment": "production",
    "secret_key": SECRET,
    "encryption_keys": "7Vh1cX0rPq2dQm5T8sKjW3uYzLb6NfGa9HeRiOoUxCk=",
    "database_url": "mongodb://db.internal/octopus",
    "bootstrap_token": "tok-9f2b7c41d8-3e",
    "smtp_url": "smtps://mail.example.com",
    "public_url": "https://octopus.example.com",
}

Read = Callable[..., Settings]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has set, these tests set their own."""
    for name in (*Settings.model_fields, "api_key"):
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def dotenv(tmp_path: Path) -> Read:
    """Settings from a `.env` of these lines, and the environment."""

    def read(*lines: str) -> Settings:
        path = tmp_path / ".env"
        path.write_text("\n".join(lines))
        return Settings(_env_file=path)

    return read


def faults_of(**values: Any) -> str:
    with pytest.raises(ValidationError) as refusal:
        Settings(_env_file=None, **values)
    return str(refusal.value)


class TestReading:
    def test_takes_the_default_when_nothing_is_said(self, dotenv: Read) -> None:
        settings = dotenv()

        assert settings.port == 8000
        assert settings.auth_cache_seconds == 5

    def test_takes_the_file_over_the_default(self, dotenv: Read) -> None:
        assert dotenv("PORT=8101", "REGISTRATION=closed").port == 8101

    def test_takes_the_environment_over_the_file(self, dotenv: Read, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PORT", "8102")

        settings = dotenv("PORT=8101", "WORKERS=3")

        assert (settings.port, settings.workers) == (8102, 3)

    def test_reads_the_file_of_the_folder_it_runs_in(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / ".env").write_text("JWT_ISSUER=harbour")
        monkeypatch.chdir(tmp_path)

        assert Settings().jwt_issuer == "harbour"

    def test_takes_an_empty_variable_for_one_that_is_not_set(self, dotenv: Read) -> None:
        settings = dotenv("SECRET_KEY=", "PORT=", "MASTER_API_KEY=")

        assert (settings.secret_key, settings.port, settings.master_api_key) == (None, 8000, None)

    def test_passes_over_variables_that_are_not_its_own(self, dotenv: Read) -> None:
        assert dotenv("COLOUR=blue").port == 8000

    @pytest.mark.parametrize("name", ["MASTER_API_KEY", "API_KEY"])
    @pytest.mark.parametrize("is_file", [True, False])
    def test_knows_the_master_key_by_both_names(
        self, dotenv: Read, monkeypatch: pytest.MonkeyPatch, name: str, *, is_file: bool
    ) -> None:
        if not is_file:
            monkeypatch.setenv(name, KEY)

        settings = dotenv(f"{name}={KEY}" if is_file else "")

        assert settings.master_api_key is not None
        assert settings.master_api_key.get_secret_value() == KEY

    def test_reads_lists_as_json(self, dotenv: Read) -> None:
        settings = dotenv('CORS_ORIGINS=["https://a.example","https://b.example"]', 'TRUSTED_PROXIES=["10.0.0.0/8"]')

        assert settings.cors_origins == ("https://a.example", "https://b.example")
        assert settings.trusted_proxies == ("10.0.0.0/8",)

    def test_reads_previous_secrets_with_commas_between(self, dotenv: Read) -> None:
        settings = dotenv(f"SECRET_KEY={SECRET}", f"PREVIOUS_SECRET_KEYS={OLD} , {OLDER},")

        assert settings.keyring.secrets == (SECRET.encode(), OLD.encode(), OLDER.encode())

    @pytest.mark.parametrize("previous", ["changeme", "x" * 40, f"{OLD},short"])
    def test_refuses_a_previous_secret_that_was_none(self, previous: str) -> None:
        assert "PREVIOUS_SECRET_KEYS" in faults_of(secret_key=SECRET, previous_secret_keys=previous)

    @pytest.mark.parametrize("name", ["REGISTRATION", "ENVIRONMENT", "LOG_LEVEL", "PORT", "WORKERS", "BCRYPT_ROUNDS"])
    def test_refuses_a_value_that_means_nothing(self, dotenv: Read, name: str) -> None:
        with pytest.raises(ValidationError, match=f"(?m)^{name.lower()}$"):
            dotenv(f"{name}=sometimes")

    @pytest.mark.parametrize(
        "url", ["postgres://host/name", "http://mongodb://host", "embedded2", "db.internal:27017", "mongodb:/host"]
    )
    def test_refuses_what_is_no_url_of_mongodb(self, url: str) -> None:
        assert re.search(r"(?m)^database_url$", faults_of(database_url=url))

    @pytest.mark.parametrize("url", ["embedded", "mongodb://host/name", "mongodb+srv://cluster.example/name"])
    def test_accepts_every_url_of_mongodb(self, url: str) -> None:
        assert Settings(_env_file=None, database_url=url).is_embedded is (url == "embedded")

    @pytest.mark.parametrize(
        "name", ["rate_limit_anonymous", "rate_limit_auth", "rate_limit_key_create", "rate_limit_authenticated"]
    )
    @pytest.mark.parametrize("rate", ["often", "10", "ten/minute", "10/fortnight"])
    def test_refuses_what_is_no_rate(self, name: str, rate: str) -> None:
        assert re.search(rf"(?m)^{name}$", faults_of(**{name: rate}))

    @pytest.mark.parametrize(
        "url",
        [
            *(
                "memory",
                "memcached://:s3cret@host",
                "redis://",
                "redis://:s3cret@host:port",
                "redis://:s3cret@host/cache",
            ),
            *(
                "redis://:s3cret@host/1/2",
                "redis://:s3cret@[::1",
                "redis://:s3cret@host?tls=1",
                "redis://host?db=s3cret",
            ),
        ],
    )
    def test_refuses_a_store_of_rates_that_it_does_not_have(self, url: str) -> None:
        faults = faults_of(rate_limit_storage_url=url)

        assert re.search(r"(?m)^rate_limit_storage_url$", faults)
        assert "s3cret" not in faults

    @pytest.mark.parametrize(
        "url", ["redis://host", "redis://:s3cret@host:6380/2", "rediss://me:s3cret@host?ssl_cert_reqs=none"]
    )
    def test_keeps_the_password_of_a_store_of_rates_to_itself(self, url: str) -> None:
        settings = Settings(_env_file=None, rate_limit_storage_url=url)

        assert settings.has_shared_rate_limits
        assert "s3cret" not in f"{settings!r} {settings} {settings.model_dump_json()}"

    @pytest.mark.parametrize(
        "url", ["localhost:11434", "http://:s3cret@host/v1", "https://host/v1?key=s3cret", "http://"]
    )
    def test_refuses_an_assistant_at_no_place(self, url: str) -> None:
        faults = faults_of(assistant_base_url=url)

        assert re.search(r"(?m)^assistant_base_url$", faults)
        assert "s3cret" not in faults

    def test_keeps_the_key_of_the_assistant_to_itself(self) -> None:
        settings = Settings(_env_file=None, assistant_api_key="s3cret")

        assert "s3cret" not in f"{settings!r} {settings} {settings.model_dump_json()}"

    def test_refuses_a_public_url_that_can_not_be_read(self) -> None:
        assert re.search(r"(?m)^public_url$", faults_of(public_url="https://[octopus.example"))

    @pytest.mark.parametrize("block", ["proxy.example", "10.0.0.0/33", "10.0.0", "", "::1/129"])
    def test_refuses_a_proxy_that_is_no_address(self, block: str) -> None:
        assert re.search(r"(?m)^trusted_proxies$", faults_of(trusted_proxies=["10.0.0.1", block]))

    @pytest.mark.parametrize(
        "key",
        [
            "master",
            KEY[:-1] + "y",
            KEY.replace("octopus", "Octopus"),
            KEY + "0",
            "octopus_Ab3dEf9H_0123456789abcdefghijABCDEFGHIJKL",
        ],
    )
    @pytest.mark.parametrize("name", ["master_api_key", "api_key"])
    def test_refuses_a_master_key_without_the_format_of_a_key(self, name: str, key: str) -> None:
        assert "MASTER_API_KEY" in faults_of(**{name: key})

    def test_can_not_be_changed_afterwards(self) -> None:
        settings = Settings(_env_file=None)

        with pytest.raises(ValidationError):
            settings.debug = True  # type: ignore[misc]


class TestSecret:
    @pytest.mark.parametrize("environment", ["development", "test", "staging", "production"])
    @pytest.mark.parametrize("secret", ["short", SECRET[:31]])
    def test_is_refused_when_shorter_than_32_bytes(self, environment: str, secret: str) -> None:
        faults = faults_of(**{**SAFE, "environment": environment, "secret_key": secret})

        assert "SECRET_KEY is shorter than 32 bytes" in faults

    def test_counts_in_bytes(self) -> None:
        assert Settings(_env_file=None, secret_key="ßéüñøåçžşł€漢字かなθ").secret_key is not None

    @pytest.mark.parametrize(
        "secret",
        [
            "change-me-change-me-change-me-change-me",
            "CHANGEME0123456789abcdefghijklmnop",
            "your-secret-key-goes-here-0123456789",
            "an-example-of-a-secret-0123456789abc",
            "my-default-0123456789-0123456789-abc",
            "password-password-0123456789-abcdef",
            "a" * 64,
            "abcabcabcabcabcabcabcabcabcabcabcabcabc",
        ],
    )
    def test_is_refused_when_it_is_a_placeholder(self, secret: str) -> None:
        assert "SECRET_KEY is a placeholder" in faults_of(**{**SAFE, "secret_key": secret})

    @pytest.mark.parametrize("environment", ["staging", "production"])
    def test_is_required_where_others_rely_on_it(self, environment: str) -> None:
        assert "SECRET_KEY is missing" in faults_of(**{**SAFE, "environment": environment, "secret_key": None})

    @pytest.mark.parametrize("environment", ["development", "test"])
    def test_is_made_on_a_machine_of_development_and_kept(self, environment: str, tmp_path: Path) -> None:
        first = Settings(_env_file=None, environment=environment, data_dir=tmp_path).keyring.signing_secret
        again = Settings(_env_file=None, environment=environment, data_dir=tmp_path).keyring.signing_secret

        assert len(first) >= 32
        assert again == first


class TestBounds:
    @pytest.mark.parametrize(
        "name",
        [
            *("refresh_token_expire_days", "session_max_days", "deleted_retention_days"),
            *("access_token_expire_minutes", "lockout_window_minutes"),
        ],
    )
    def test_of_times_end_before_the_calendar_does(self, name: str) -> None:
        assert name in faults_of(**{name: 5_000_000})


class TestProduction:
    def test_starts_when_everything_is_safe(self) -> None:
        assert Settings(_env_file=None, **SAFE).environment == "production"

    def test_takes_a_master_key_for_a_bootstrap_token(self) -> None:
        assert Settings(_env_file=None, **{**SAFE, "bootstrap_token": None, "master_api_key": KEY})

    @pytest.mark.parametrize(
        ("fault", "names"),
        [
            ({"secret_key": None}, "SECRET_KEY"),
            ({"secret_key": "tooshort"}, "SECRET_KEY"),
            ({"secret_key": "change-this-to-something-random-please"}, "SECRET_KEY"),
            ({"database_url": "embedded"}, "DATABASE_URL"),
            ({"debug": True}, "DEBUG"),
            ({"cors_origins": ["*"]}, "CORS_ORIGINS"),
            ({"cors_origins": ["https://a.example", "*"]}, "CORS_ORIGINS"),
            ({"bootstrap_token": None}, "BOOTSTRAP_TOKEN"),
            ({"bootstrap_token": "guess-me"}, "BOOTSTRAP_TOKEN"),
            ({"encryption_keys": ""}, "ENCRYPTION_KEYS"),
            ({"encryption_keys": "too-short"}, "ENCRYPTION_KEYS"),
            ({"smtp_url": None}, "SMTP_URL"),
            ({"smtp_url": "smtp://mail.example.com"}, "SMTP_URL"),
            ({"public_url": "http://octopus.example.com"}, "PUBLIC_URL"),
            ({"public_url": "http://localhost:8000"}, "PUBLIC_URL"),
            ({"public_url": "https://localhost"}, "PUBLIC_URL"),
            ({"public_url": "https://127.0.0.1:8443/base"}, "PUBLIC_URL"),
            ({"public_url": "https://[::1]"}, "PUBLIC_URL"),
            ({"public_url": "octopus.example.com"}, "PUBLIC_URL"),
            ({"password_reset_url": "http://app.example.com/reset"}, "PASSWORD_RESET_URL"),
            ({"password_reset_url": "https://localhost/reset"}, "PASSWORD_RESET_URL"),
            ({"email_verify_url": "javascript:alert(1)"}, "EMAIL_VERIFY_URL"),
            ({"cors_origins": ["http://app.example.com"]}, "CORS_ORIGINS"),
            ({"trusted_proxies": ["10.0.0.0/8", "0.0.0.0/0"]}, "TRUSTED_PROXIES"),
            ({"trusted_proxies": ["::/0"]}, "TRUSTED_PROXIES"),
            ({"rate_limit_auth": "121/minute"}, "RATE_LIMIT_AUTH"),
            ({"assistant_base_url": "http://api.example.com/v1", "assistant_api_key": "sk-1"}, "ASSISTANT_API_KEY"),
            ({"bcrypt_rounds": 9}, "BCRYPT_ROUNDS"),
            ({"lockout_attempts": 21}, "LOCKOUT_ATTEMPTS"),
            ({"access_token_expire_minutes": 1441}, "ACCESS_TOKEN_EXPIRE_MINUTES"),
        ],
    )
    def test_is_refused_for_each_fault_alone(self, fault: dict[str, Any], names: str) -> None:
        faults = faults_of(**{**SAFE, **fault})

        variables = (
            *("SECRET_KEY", "DATABASE_URL", "DEBUG", "CORS_ORIGINS", "BOOTSTRAP_TOKEN", "ENCRYPTION_KEYS", "SMTP_URL"),
            *("PUBLIC_URL", "BCRYPT_ROUNDS", "LOCKOUT_ATTEMPTS", "ACCESS_TOKEN_EXPIRE_MINUTES"),
            *("PASSWORD_RESET_URL", "EMAIL_VERIFY_URL", "TRUSTED_PROXIES", "RATE_LIMIT_AUTH", "ASSISTANT_API_KEY"),
        )
        assert [variable for variable in variables if variable in faults] == [names]

    @pytest.mark.parametrize("environment", ["development", "test", "staging"])
    def test_alone_minds_what_is_convenient_elsewhere(self, environment: str) -> None:
        settings = Settings(
            _env_file=None,
            environment=environment,
            secret_key=SECRET,
            encryption_keys=SAFE["encryption_keys"],
            debug=True,
            cors_origins=["*"],
            smtp_url="smtp://mail.example.com",
            bcrypt_rounds=4,
            lockout_attempts=100,
            access_token_expire_minutes=10_000,
        )

        assert settings.is_embedded

    @pytest.mark.parametrize(
        "assistant",
        [
            {"assistant_base_url": "http://model:11434/v1"},
            {"assistant_base_url": "http://127.0.0.1:11434/v1", "assistant_api_key": "sk-1"},
            {"assistant_base_url": "https://api.example.com/v1", "assistant_api_key": "sk-1"},
            {"assistant_api_key": "sk-1"},
        ],
    )
    def test_accepts_an_assistant_that_is_told_no_secret_in_clear(self, assistant: dict[str, Any]) -> None:
        assert Settings(_env_file=None, **SAFE, **assistant).assistant_history == 50

    def test_accepts_the_bounds(self) -> None:
        bounds: dict[str, Any] = {"bcrypt_rounds": 10, "lockout_attempts": 20, "access_token_expire_minutes": 1440}

        assert Settings(_env_file=None, **SAFE, **bounds).lockout_attempts == 20

    def test_is_told_all_faults_at_once(self) -> None:
        faults = faults_of(environment="production", debug=True, cors_origins=["*"])

        for name in ("SECRET_KEY", "DATABASE_URL", "DEBUG", "CORS_ORIGINS", "BOOTSTRAP_TOKEN", "MASTER_API_KEY"):
            assert name in faults
        for name in ("SMTP_URL", "PUBLIC_URL"):
            assert name in faults

    def test_is_told_of_a_bad_master_key_beside_the_rest(self) -> None:
        faults = faults_of(environment="production", debug=True, master_api_key="x")

        for name in ("SECRET_KEY", "DATABASE_URL", "DEBUG", "MASTER_API_KEY is not"):
            assert name in faults

    def test_refuses_every_origin_as_the_variable_is_usually_written(
        self, dotenv: Read, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CORS_ORIGINS", "*")

        with pytest.raises(ValidationError, match="CORS_ORIGINS"):
            dotenv(*(f"{name.upper()}={value}" for name, value in SAFE.items()))


class TestSecrecy:
    VALUES: dict[str, Any] = {  # noqa: RUF012
        **SAFE,
        "previous_secret_keys": "Old0ne8fG3kLmQ7zXc5Vb1Nn2Ma4Ss6D",
        "master_api_key": KEY,
        "database_url": "mongodb://octopus:tiger-9f3@db.internal/octopus",
    }
    HIDDEN = (SECRET, "tok-9f2b7c41d8-3e", KEY, "Old0ne8fG3kLmQ7zXc5Vb1Nn2Ma4Ss6D", "tiger-9f3")

    @pytest.mark.parametrize("render", [str, repr, lambda settings: settings.model_dump_json()])
    def test_keeps_secrets_out_of_what_is_printed(self, render: Callable[[Settings], str]) -> None:
        text = render(Settings(_env_file=None, **self.VALUES))

        assert "production" in text
        assert not [secret for secret in self.HIDDEN if secret in text]

    def test_keeps_secrets_out_of_the_keyring(self) -> None:
        text = repr(Settings(_env_file=None, **self.VALUES).keyring)

        assert SECRET not in text
        assert "Old0ne8f" not in text

    @pytest.mark.parametrize(
        "fault",
        [
            {"debug": True},
            {"secret_key": "short-but-s3cret"},
            {"master_api_key": "octopus_not-a-key-but-s3cret"},
            {"database_url": "mysql://root:s3cret@host"},
            {"port": 70_000},
        ],
    )
    def test_keeps_secrets_out_of_a_refusal(self, fault: dict[str, Any]) -> None:
        text = faults_of(**{**self.VALUES, **fault})

        assert not [secret for secret in (*self.HIDDEN, "s3cret") if secret in text]


class TestActiveSettings:
    def test_are_those_that_were_put_to_use(self) -> None:
        settings = Settings(_env_file=None, environment="test", jwt_issuer="lighthouse")

        use_settings(settings)

        assert get_settings() is settings

    def test_are_an_error_before_that(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(config, "_active", None)

        with pytest.raises(RuntimeError):
            get_settings()
