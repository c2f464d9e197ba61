"""Handing mails over: to mail servers of all kinds, and to a folder."""

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from app.core.clock import utc_now
from app.core.exceptions import MailRefusedError, MailUndeliveredError
from app.core.mail_templates import Rendered
from app.core.mailer import FolderMailer, Mailer, SmtpMailer, compose, mailer_of
from app.core.smtp_server import SmtpServer
from tests.core.active import activate
from tests.mailbox import Mailbox, html_of, text_of

ID = "6746d0a8f8f8f8f8f8f8f8f8"
RENDERED = Rendered("Tea is ready", "Hello Ada,\n\nTøa is ready.\n", "<p>Hello Ada,</p><p>Tøa is ready.</p>\n")
PASSWORD = "tr0mb:ne"


def mail_to(to: str, *, sender: str = "Octopus <octopus@example.com>", rendered: Rendered = RENDERED) -> EmailMessage:
    return compose(rendered, mail_id=ID, sender=sender, to=to)


def smtp_mailer(url: str) -> SmtpMailer:
    return SmtpMailer(SmtpServer.parse(url))


class Listener(Mailbox):
    """A mailbox that also keeps whom mails come from and go to, and what logins it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.envelopes: list[Envelope] = []
        self.logins: list[tuple[bytes, bytes]] = []
        self.recipient_answers: list[str] = []

    async def handle_RCPT(self, _: SMTP, __: Session, envelope: Envelope, address: str, ___: Any) -> str:  # noqa: N802
        if self.recipient_answers:
            return self.recipient_answers.pop(0)
        envelope.rcpt_tos.append(address)
        self.envelopes.append(envelope)
        return "250 OK"

    def log_in(self, _: SMTP, __: Session, ___: Envelope, ____: str, login: LoginPassword) -> AuthResult:
        self.logins.append((login.login, login.password))
        return AuthResult(success=login.password == PASSWORD.encode(), handled=False)


@asynccontextmanager
async def listening(*, tls: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[Listener]:
    """A mail server with options of aiosmtpd; `tls` is spoken from the first byte."""
    listener = Listener()
    loop = asyncio.get_running_loop()

    def protocol() -> SMTP:
        return SMTP(listener, loop=loop, authenticator=listener.log_in, **options)

    server = await loop.create_server(protocol, "127.0.0.1", 0, ssl=tls)
    listener.port = server.sockets[0].getsockname()[1]
    try:
        yield listener
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def talking(talk: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[int]:
    """A server that says something to whoever comes, and hangs up; its port."""
    ended = asyncio.Event()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await talk(writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        ended.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await ended.wait()


def names_in(folder: Path, pattern: str = "*") -> list[str]:
    return [path.name for path in folder.glob(pattern)]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1, made by itself, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mail server of a test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(encoding)
    )
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def _trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine trusts the certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


class TestComposed:
    def test_says_whom_it_is_from_what_it_is_and_that_no_person_wrote_it(self) -> None:
        mail = mail_to("ada@example.com")

        assert mail["From"] == "Octopus <octopus@example.com>"
        assert mail["To"] == "ada@example.com"
        assert mail["Subject"] == "Tea is ready"
        assert mail["Message-ID"] == "<6746d0a8f8f8f8f8f8f8f8f8@example.com>"
        assert mail["Auto-Submitted"] == "auto-generated"
        assert abs(parsedate_to_datetime(mail["Date"]) - utc_now()) < timedelta(minutes=1)
        assert mail.get_content_type() == "multipart/alternative"
        assert (text_of(mail), html_of(mail)) == (RENDERED.text, RENDERED.html)

    def test_has_an_id_of_the_senders_domain_when_the_sender_has_no_name(self) -> None:
        assert mail_to("ada@example.com", sender="a@b.example")["Message-ID"] == f"<{ID}@b.example>"

    @pytest.mark.parametrize("part", ["subject", "to", "sender"])
    def test_takes_no_further_header_from_what_it_is_given(self, part: str) -> None:
        hostile = "ada@example.com\r\nBcc: ben@example.com"
        values = {"to": "ada@example.com", "sender": "octopus@example.com", part: hostile}
        rendered = RENDERED._replace(subject=values.pop("subject", "Tea"))

        with pytest.raises(ValueError, match=r"(?i)line|address|invalid characters"):
            mail_to(**values, rendered=rendered)

    @pytest.mark.parametrize(
        "to", ["ada@example.com, ben@example.com", "Ada <ada@example.com>", "ada@example.com>", "ada", ""]
    )
    def test_goes_to_one_address(self, to: str) -> None:
        with pytest.raises(ValueError, match=r"(?i)address|@|domain"):
            mail_to(to)


class TestSmtp:
    async def test_hands_over_text_and_html(self) -> None:
        async with listening() as server:
            await smtp_mailer(server.url).send(mail_to("o'neil+tea@example.com"))

            mail = await server.next()
        assert server.envelopes[0].mail_from == "octopus@example.com"
        assert server.envelopes[0].rcpt_tos == ["o'neil+tea@example.com"]
        assert mail["To"] == "o'neil+tea@example.com"
        assert (text_of(mail).splitlines(), html_of(mail).splitlines()) == (
            ["Hello Ada,", "", "Tøa is ready."],
            ["<p>Hello Ada,</p><p>Tøa is ready.</p>"],
        )
        assert server.logins == []

    async def test_hands_over_long_lines_in_any_script(self) -> None:
        long = "\N{OCTOPUS} " + "tea " * 2000 + "\N{CJK UNIFIED IDEOGRAPH-674E}"
        async with listening() as server:
            rendered = Rendered(f"Tea {'for two ' * 50}", f"{long}\n", f"<p>{long}</p>\n")
            await smtp_mailer(server.url).send(mail_to("ada@example.com", rendered=rendered))

            mail = await server.next()
        assert (text_of(mail).strip(), html_of(mail).strip()) == (long, f"<p>{long}</p>")
        assert mail["Subject"].strip() == f"Tea {'for two ' * 50}".strip()

    async def test_writes_a_domain_of_any_script_as_every_server_reads_it(self) -> None:
        async with listening() as server:  # which does not know SMTPUTF8
            await smtp_mailer(server.url).send(mail_to("ada@straße.example.com"))

            mail = await server.next()
        assert server.envelopes[0].rcpt_tos == ["ada@xn--strae-oqa.example.com"]
        assert mail["To"] == "ada@xn--strae-oqa.example.com"

    async def test_hands_over_to_a_name_of_any_script(self) -> None:
        async with listening(enable_SMTPUTF8=True) as server:
            await smtp_mailer(server.url).send(mail_to("jörg@example.com"))

            mail = await server.next()
        assert server.envelopes[0].rcpt_tos == ["jörg@example.com"]
        assert mail["To"] == "jörg@example.com"

    @pytest.mark.parametrize("answer", ["451 Try later", "421 Too busy", "552 Too large", "550 No such user"])
    @pytest.mark.parametrize("at", ["recipient_answers", "refusals"])
    async def test_knows_whether_trying_again_helps(self, at: str, answer: str) -> None:
        expected = MailUndeliveredError if answer.startswith("4") else MailRefusedError
        async with listening() as server:
            getattr(server, at).append(answer)

            with pytest.raises(expected):
                await smtp_mailer(server.url).send(mail_to("ada@example.com"))

        assert server.mails.empty()

    async def test_may_work_later_when_nobody_listens(self) -> None:
        async with listening() as server:
            pass

        with pytest.raises(MailUndeliveredError):
            await smtp_mailer(server.url).send(mail_to("ada@example.com"))

    @pytest.mark.parametrize("first_words", [b"", b"I speak no SMTP\r\n", b"220 ready\r\n"])
    async def test_may_work_later_when_the_server_hangs_up(self, first_words: bytes) -> None:
        async def say_them(writer: asyncio.StreamWriter) -> None:
            writer.write(first_words)

        async with talking(say_them) as port:
            with pytest.raises(MailUndeliveredError):
                await smtp_mailer(f"smtp://127.0.0.1:{port}").send(mail_to("ada@example.com"))

    async def test_gives_up_a_server_that_takes_too_long_all_in_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("app.core.mailer._LONGEST_SECONDS", 0.2)

        async def dawdle(writer: asyncio.StreamWriter) -> None:
            while not writer.is_closing():  # each line comes in time, there is only no end to them
                writer.write(b"220-one moment\r\n")
                await asyncio.sleep(0.01)

        async with talking(dawdle) as port, asyncio.timeout(5):
            with pytest.raises(MailUndeliveredError):
                await smtp_mailer(f"smtp://127.0.0.1:{port}").send(mail_to("ada@example.com"))

    async def test_ends_at_once_when_it_is_cancelled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        has_mail, may_answer = asyncio.Event(), asyncio.Event()

        async def keep_it_waiting(*_: Any) -> str:
            has_mail.set()
            await may_answer.wait()
            return "250 OK"

        monkeypatch.setattr(Listener, "handle_DATA", keep_it_waiting)
        async with listening() as server:
            sending = asyncio.create_task(smtp_mailer(server.url).send(mail_to("ada@example.com")))
            await has_mail.wait()
            sending.cancel()
            _, late = await asyncio.wait([sending], timeout=5)
            may_answer.set()

        assert late == set()
        assert sending.cancelled()


class TestTls:
    LOGIN = "ada%40example.com:tr0mb%3Ane"

    @pytest.mark.usefixtures("_trusted")
    @pytest.mark.parametrize("starttls", ["", "?starttls=1"])
    async def test_comes_before_the_login(self, tls: ssl.SSLContext, starttls: str) -> None:
        async with listening(tls_context=tls, require_starttls=True, auth_required=True) as server:
            await smtp_mailer(f"smtp://{self.LOGIN}@127.0.0.1:{server.port}{starttls}").send(mail_to("ada@example.com"))

            assert (await server.next())["Subject"] == "Tea is ready"
        assert server.logins == [(b"ada@example.com", b"tr0mb:ne")]

    @pytest.mark.usefixtures("_trusted")
    async def test_is_spoken_from_the_first_byte_when_the_url_says_so(self, tls: ssl.SSLContext) -> None:
        async with listening(tls=tls, auth_require_tls=False) as server:
            await smtp_mailer(f"smtps://{self.LOGIN}@127.0.0.1:{server.port}").send(mail_to("ada@example.com"))

            assert (await server.next())["Subject"] == "Tea is ready"
        assert server.logins == [(b"ada@example.com", b"tr0mb:ne")]

    @pytest.mark.usefixtures("_trusted")
    async def test_is_used_where_the_server_has_it(self, tls: ssl.SSLContext) -> None:
        async with listening(tls_context=tls, require_starttls=True) as server:
            await smtp_mailer(f"smtp://127.0.0.1:{server.port}").send(mail_to("ada@example.com"))

            assert (await server.next())["Subject"] == "Tea is ready"

    @pytest.mark.parametrize("url", [f"smtp://{LOGIN}@127.0.0.1", "smtp://127.0.0.1"])
    async def test_is_insisted_on_rather_than_saying_anything_in_clear(self, url: str) -> None:
        async with listening(auth_require_tls=False) as server:  # has no STARTTLS, and takes passwords all the same
            with pytest.raises(MailUndeliveredError):
                await smtp_mailer(f"{url}:{server.port}?starttls=1").send(mail_to("ada@example.com"))

        assert (server.logins, server.envelopes) == ([], [])

    async def test_is_insisted_on_for_a_password_without_being_asked(self) -> None:
        async with listening(auth_require_tls=False) as server:
            with pytest.raises(MailUndeliveredError):
                await smtp_mailer(f"smtp://{self.LOGIN}@127.0.0.1:{server.port}").send(mail_to("ada@example.com"))

        assert (server.logins, server.envelopes) == ([], [])

    @pytest.mark.parametrize("scheme", ["smtp", "smtps"])
    async def test_shows_the_password_to_no_server_that_it_does_not_trust(
        self, tls: ssl.SSLContext, scheme: str
    ) -> None:
        options: dict[str, Any] = {"tls_context": tls} if scheme == "smtp" else {"tls": tls}
        async with listening(**options, auth_require_tls=False) as server:
            with pytest.raises(MailUndeliveredError):
                await smtp_mailer(f"{scheme}://{self.LOGIN}@127.0.0.1:{server.port}").send(mail_to("ada@example.com"))

        assert (server.logins, server.envelopes) == ([], [])

    @pytest.mark.usefixtures("_trusted")
    async def test_of_a_refused_login_may_work_later(self, tls: ssl.SSLContext) -> None:
        async with listening(tls_context=tls, auth_required=True) as server:
            with pytest.raises(MailUndeliveredError):
                await smtp_mailer(f"smtp://ada:wrong@127.0.0.1:{server.port}").send(mail_to("ada@example.com"))


class TestFolder:
    async def test_has_a_file_that_mail_programs_open_and_others_do_not(self, tmp_path: Path) -> None:
        await FolderMailer(tmp_path / "outbox", shows_text=False).send(mail_to("jörg@example.com"))

        (file,) = (tmp_path / "outbox").iterdir()
        assert file.name == "6746d0a8f8f8f8f8f8f8f8f8.eml"
        assert file.stat().st_mode & 0o777 == 0o600
        mail = message_from_bytes(file.read_bytes(), policy=policy.default)
        assert isinstance(mail, EmailMessage)
        assert (mail["To"], mail["Subject"]) == ("jörg@example.com", "Tea is ready")
        assert (text_of(mail), html_of(mail)) == (RENDERED.text, RENDERED.html)

    async def test_has_one_file_of_a_mail_that_is_sent_again(self, tmp_path: Path) -> None:
        mailer = FolderMailer(tmp_path, shows_text=False)

        await mailer.send(mail_to("ada@example.com"))
        await mailer.send(mail_to("ben@example.com"))

        assert names_in(tmp_path) == ["6746d0a8f8f8f8f8f8f8f8f8.eml"]
        assert b"To: ben@example.com" in (tmp_path / f"{ID}.eml").read_bytes()

    async def test_has_no_half_of_a_mail(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        mailer = FolderMailer(tmp_path, shows_text=False)
        write = Path.write_bytes

        def write_half(path: Path, content: bytes) -> int:
            write(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", write_half)
            with pytest.raises(MailUndeliveredError):
                await mailer.send(mail_to("ada@example.com"))
        assert names_in(tmp_path, "*.eml") == []

        await mailer.send(mail_to("ada@example.com"))
        assert names_in(tmp_path) == ["6746d0a8f8f8f8f8f8f8f8f8.eml"]
        assert (tmp_path / f"{ID}.eml").stat().st_mode & 0o777 == 0o600

    async def test_may_work_later_when_it_can_not_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "outbox").write_text("a file, not a folder")

        with pytest.raises(MailUndeliveredError):
            await FolderMailer(tmp_path / "outbox", shows_text=False).send(mail_to("ada@example.com"))


class TestChoice:
    @pytest.mark.parametrize(("environment", "is_shown"), [("development", True), ("test", False)])
    async def test_shows_the_text_in_the_log_only_in_development(
        self, tmp_path: Path, environment: str, *, is_shown: bool
    ) -> None:
        mailer: Mailer = mailer_of(activate(environment=environment, data_dir=tmp_path))

        with capture_logs() as logs:
            await mailer.send(mail_to("ada@example.com"))

        (line,) = logs
        assert (line["event"], str(line["to"]), str(line["subject"])) == (
            "mail_written",
            "ada@example.com",
            "Tea is ready",
        )
        assert line["file"] == str(tmp_path / "outbox" / f"{ID}.eml")
        assert ("is ready." in str(line)) is is_shown
        assert names_in(tmp_path / "outbox") == ["6746d0a8f8f8f8f8f8f8f8f8.eml"]

    def test_is_the_server_when_there_is_one(self) -> None:
        mailer = mailer_of(activate(smtp_url="smtps://ada:tr0mb0ne@mail.example.com"))

        assert isinstance(mailer, SmtpMailer)
        assert mailer.server == ("mail.example.com", 465, "ada", "tr0mb0ne", True, False)
