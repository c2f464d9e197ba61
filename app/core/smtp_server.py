"""The mail server that `SMTP_URL` names."""

from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit


class SmtpServer(NamedTuple):
    """`smtp://user:password@host:port?starttls=1`, or `smtps://` for TLS from the first byte.

    `starttls` 1 insists on TLS, 0 does without; left out, TLS is used where the server has it, and a password is
    never sent without.
    """

    host: str
    port: int
    username: str | None
    password: str | None
    is_tls: bool
    starttls: bool | None

    @classmethod
    def parse(cls, url: str) -> "SmtpServer":
        """`ValueError` when it is no such URL."""
        parts = urlsplit(url)
        if parts.scheme not in {"smtp", "smtps"} or not parts.hostname:
            raise ValueError("must be smtp://host:port or smtps://host:port")
        is_tls = parts.scheme == "smtps"
        asked = parse_qs(parts.query).get("starttls", [""])[-1]
        starttls = False if is_tls else {"1": True, "0": False}.get(asked, True if parts.password else None)
        return cls(
            host=parts.hostname,
            port=parts.port or (465 if is_tls else 587),
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            is_tls=is_tls,
            starttls=starttls,
        )

    @property
    def sends_password_in_clear(self) -> bool:
        return self.password is not None and not self.is_tls and not self.starttls
