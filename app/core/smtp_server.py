"""The mail server that `SMTP_URL` names."""

from typing import Final, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

_SHAPE: Final = (
    "must be smtp://host:port or smtps://host:port, with user:password@ before the host when the server asks for "
    "them; / ? # @ : and % in a password are percent-encoded"
)
_STARTTLS: Final = {"": None, "starttls=1": True, "starttls=0": False}


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
        """`ValueError` when it is no such URL. It repeats nothing of it: any part may be one of the password."""
        parts, host, port = _split(url)
        is_tls = parts.scheme == "smtps"
        if parts.query not in _STARTTLS or (is_tls and parts.query):
            raise ValueError("after the `?` there may be starttls=1 or starttls=0, and with smtps:// nothing")
        if bool(parts.username) != bool(parts.password):
            raise ValueError("must name both a user and a password, or neither")
        asked = _STARTTLS[parts.query]
        starttls = True if asked is None and parts.password else asked
        return cls(
            host=host,
            port=port or (465 if is_tls else 587),
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            is_tls=is_tls,
            starttls=False if is_tls else starttls,
        )

    @property
    def sends_password_in_clear(self) -> bool:
        return self.password is not None and not self.is_tls and not self.starttls


def _split(url: str) -> tuple[SplitResult, str, int | None]:
    """The parts of the URL, its host and its port."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(_SHAPE) from None
    if parts.scheme not in {"smtp", "smtps"} or not host or parts.path not in {"", "/"} or parts.fragment:
        raise ValueError(_SHAPE)
    return parts, host, port
