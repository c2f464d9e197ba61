"""Sending mails: by an SMTP server, or into a folder where none is configured."""

import asyncio
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import default
from email.utils import format_datetime
from pathlib import Path
from typing import Final, Protocol

import aiosmtplib
from email_validator import validate_email

from app.core.clock import utc_now
from app.core.config import Environment, Settings
from app.core.exceptions import MailRefusedError, MailUndeliveredError
from app.core.logging_config import get_logger
from app.core.mail_templates import Rendered
from app.core.smtp_server import SmtpServer

_TIMEOUT_SECONDS: Final = 20  # for each answer of the server
_LONGEST_SECONDS: Final = 60  # for all of them; the outbox lets another sender try after 90
_UTF8: Final = default.clone(utf8=True)  # RFC 6532: addresses may be written in any script
_PERMANENT: Final = range(500, 600)

_log = get_logger(__name__)


class Mailer(Protocol):
    async def send(self, message: EmailMessage) -> None:
        """Hand the mail over. `MailUndeliveredError` when it may work later, `MailRefusedError` when it will not."""
        ...


def compose(rendered: Rendered, *, mail_id: str, sender: str, to: str) -> EmailMessage:
    """A mail in text and HTML. Sent twice it carries the same `Message-ID`, by which servers know it again."""
    message = EmailMessage()
    message["From"] = sender
    message["To"] = _address(to)
    message["Subject"] = rendered.subject
    message["Date"] = format_datetime(utc_now())
    message["Message-ID"] = f"<{mail_id}@{sender.rpartition('@')[2].rstrip('>')}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office replies
    message.set_content(rendered.text)
    message.add_alternative(rendered.html, subtype="html")
    return message


def _address(email: str) -> Address:
    """The address with its domain in the ASCII form, which every server knows."""
    parts = validate_email(email, check_deliverability=False)
    return Address(username=parts.local_part, domain=parts.ascii_domain)


def mailer_of(settings: Settings) -> Mailer:
    if settings.smtp_url is not None:
        return SmtpMailer(SmtpServer.parse(settings.smtp_url.get_secret_value()))
    return FolderMailer(settings.data_dir / "outbox", shows_text=settings.environment is Environment.DEVELOPMENT)


class SmtpMailer:
    def __init__(self, server: SmtpServer) -> None:
        self.server = server

    async def send(self, message: EmailMessage) -> None:
        try:
            async with asyncio.timeout(_LONGEST_SECONDS), self._client() as client:
                try:
                    await client.send_message(message)
                except asyncio.CancelledError:
                    client.close()  # or it says goodbye, and waits for the answer as long as for any
                    raise
        except (aiosmtplib.SMTPRecipientsRefused, aiosmtplib.SMTPResponseException) as error:
            if _is_permanent(error):
                raise MailRefusedError(reason=type(error).__name__) from error
            raise MailUndeliveredError(reason=type(error).__name__) from error
        except (aiosmtplib.SMTPException, OSError) as error:
            raise MailUndeliveredError(reason=type(error).__name__) from error

    def _client(self) -> aiosmtplib.SMTP:
        server = self.server
        return aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            username=server.username,
            password=server.password,
            use_tls=server.is_tls,
            start_tls=server.starttls,
            timeout=_TIMEOUT_SECONDS,
        )


def _is_permanent(error: Exception) -> bool:
    """Whether the server will never take this mail (RFC 5321, 4.2.1). A refused login is the operator's to mend."""
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        return all(refused.code in _PERMANENT for refused in error.recipients)
    is_about_the_mail = isinstance(error, aiosmtplib.SMTPDataError | aiosmtplib.SMTPRecipientRefused)
    return is_about_the_mail and getattr(error, "code", 0) in _PERMANENT


class FolderMailer:
    """Writes `<id>.eml` files, which mail programs open."""

    def __init__(self, folder: Path, *, shows_text: bool) -> None:
        self.folder = folder
        self.shows_text = shows_text

    async def send(self, message: EmailMessage) -> None:
        path = self.folder / f"{message['Message-ID'].strip('<>').partition('@')[0]}.eml"
        try:
            await asyncio.to_thread(self._write, path, message.as_bytes(policy=_UTF8))
        except OSError as error:
            raise MailUndeliveredError(reason=type(error).__name__) from error
        body = message.get_body(("plain",))
        shown = {"text": body.get_content()} if self.shows_text and body else {}
        _log.info("mail_written", to=message["To"], subject=message["Subject"], file=str(path), **shown)

    def _write(self, path: Path, content: bytes) -> None:
        """Whole or not at all; readable by the owner only, since links in it are credentials."""
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.touch(mode=0o600)
        draft.write_bytes(content)
        draft.replace(path)
