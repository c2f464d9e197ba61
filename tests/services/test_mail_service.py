"""The outbox: what is put into it arrives, once, whatever happens in between."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session
from bson import ObjectId
from httpx import AsyncClient
from pymongo.errors import NetworkTimeout
from structlog.testing import capture_logs

from app.core.clock import utc_now
from app.core.config import Settings, use_settings
from app.core.context import RequestContext, set_context
from app.core.exceptions import InvalidTokenError
from app.core.mailer import SmtpMailer
from app.core.principal import Principal
from app.core.smtp_server import SmtpServer
from app.crud import crud_one_time_token, crud_outgoing_mail, crud_user
from app.db.mongo import connected, get_database
from app.models.audit_event import AuditEvent
from app.models.enums import MailKind, TokenPurpose
from app.models.outgoing_mail import OutgoingMail
from app.schemas.user import OwnUserUpdate
from app.services import mail_service, password_service, user_service, verification_service
from tests.conftest import ENCRYPTION_KEY, SECRET, Serve, no_event_can_be_written
from tests.factories import PASSWORD, StoredUser, make_signed_in, make_user
from tests.mailbox import Mailbox, html_of, link_in, text_of, token_in
from tests.test_server import Server

Raw = dict[str, Any]
ADA: Final = {"email": "ada@example.com", "password": PASSWORD}
NEW_PASSWORD: Final = "walrus-Compass-77-lagoon"
# What the templates want to be told. A kind that wants more fails here until its value is added.
VALUES: Final[Raw] = {
    "at": "3 March 2026, 12:00 UTC",
    "ip": "203.0.113.9",
    "left": 9,
    "tries": 5,
    "new_email": "lovelace@example.com",
    "keys": 3,
    "key": "backup",
    "end": "The old one is refused from now on.",
    "until": "4 March 2026, 12:00 UTC",
}


@pytest.fixture
async def _database(make_settings: Callable[..., Settings]) -> AsyncIterator[None]:
    """The database without the application: nothing sends but the test."""
    settings = make_settings(mail_from="Octopus <octopus@example.com>")
    use_settings(settings)
    async with connected(settings.database_url.get_secret_value()):
        yield


def sender_to(mailbox: Mailbox) -> SmtpMailer:
    return SmtpMailer(SmtpServer.parse(mailbox.url))


async def outbox() -> list[Raw]:
    return await OutgoingMail.get_pymongo_collection().find().sort("_id").to_list()


async def the_mail() -> Raw:
    (mail,) = await outbox()
    return mail


async def make_due(moment: datetime | None = None) -> None:
    """Let the time have come for every mail that is tried again."""
    await OutgoingMail.get_pymongo_collection().update_many(
        {"due_at": {"$ne": None}}, {"$set": {"due_at": moment or utc_now()}}
    )


async def let_pass(time: timedelta) -> None:
    """Let this time have passed for every mail and link; every mail is due."""
    milliseconds = int(time.total_seconds() * 1000)
    for name, fields in (("outbox", ("created_at",)), ("one_time_tokens", ("created_at", "expires_at"))):
        earlier = {field: {"$subtract": [f"${field}", milliseconds]} for field in fields}
        await get_database()[name].update_many({}, [{"$set": earlier}])
    await make_due()


async def until_outbox(is_so: Callable[[list[Raw]], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so(await outbox()):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


class Words(HTMLParser):
    """What a reader of the page sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.words += data.split()


@pytest.mark.usefixtures("_database")
class TestEveryKind:
    @pytest.mark.parametrize("kind", list(MailKind))
    async def test_arrives_in_text_and_html_with_the_headers_of_a_mail(self, mailbox: Mailbox, kind: MailKind) -> None:
        is_verified = kind is not MailKind.EMAIL_VERIFICATION  # nobody else gets that one
        ada = await make_user(email="ada@example.com", full_name="Ada Lovelace", is_verified=is_verified)
        await mail_service.enqueue(kind, user_id=ada.id, values=VALUES)
        mail_id = (await the_mail())["_id"]

        assert await mail_service.send_next(sender_to(mailbox))

        mail = await mailbox.next()
        assert (mail["From"], mail["To"]) == ("Octopus <octopus@example.com>", "ada@example.com")
        assert mail["Message-ID"] == f"<{mail_id}@example.com>"
        assert mail["Auto-Submitted"] == "auto-generated"
        assert abs(parsedate_to_datetime(mail["Date"]) - datetime.now(UTC)) < timedelta(minutes=1)
        self.require_readable(mail, "Ada Lovelace" if is_verified else "ada@example.com")
        assert await outbox() == []

    def require_readable(self, mail: EmailMessage, name: str) -> None:
        text = "\n".join(text_of(mail).splitlines())
        assert text.startswith(f"Hello {name},")
        assert 10 < len(mail["Subject"]) < 70
        assert not [mark for mark in ("{", "}", "None", "Undefined", "](", "  ") if mark in mail["Subject"] + text]
        sentences = [paragraph for paragraph in text.split("\n\n")[1:] if "://" not in paragraph]
        assert all(each[0].isupper() and each.rstrip().endswith(".") for each in sentences)
        in_html = Words(html_of(mail)).words
        assert [word for word in text.replace(":\nhttp", "\nhttp").split() if word not in in_html] == []


@pytest.mark.usefixtures("_database")
class TestRecipient:
    async def test_is_found_by_id_address_or_name_when_the_mail_is_sent(self, mailbox: Mailbox) -> None:
        ada = await make_user(email="Ada@example.com", username="Ada.L")
        for whom in (
            {"user_id": ada.id},
            {"account": {"email_key": "ada@example.com"}},
            {"account": {"username_key": "ada.l"}},
        ):
            await mail_service.enqueue(MailKind.MFA_ENABLED, values=VALUES, **whom)
        await ada.document.set({"email": "lovelace@example.com"})

        while await mail_service.send_next(sender_to(mailbox)):
            pass

        assert [(await mailbox.next())["To"] for _ in range(3)] == ["lovelace@example.com"] * 3

    async def test_is_the_address_that_the_mail_names(self, mailbox: Mailbox) -> None:
        ada = await make_user(email="ada@example.com")
        await mail_service.enqueue(MailKind.EMAIL_CHANGED, user_id=ada.id, to="old@example.com", values=VALUES)

        await mail_service.send_next(sender_to(mailbox))

        assert (await mailbox.next())["To"] == "old@example.com"

    @pytest.mark.parametrize(
        "whom",
        [{"user_id": ObjectId()}, {"account": {"email_key": "x@example.com"}}, {"account": {"username_key": "x"}}],
    )
    async def test_that_is_nobody_gets_nothing_and_nothing_is_kept(self, mailbox: Mailbox, whom: Any) -> None:
        await mail_service.enqueue(MailKind.MFA_ENABLED, values=VALUES, **whom)

        assert await mail_service.send_next(sender_to(mailbox))

        assert mailbox.mails.empty()
        assert await outbox() == []

    @pytest.mark.parametrize(
        ("full_name", "username", "greeted"),
        [
            ("Ada Lovelace", "ada", "Ada Lovelace"),
            ("J. R. R. Tolkien", "jrr", "J. R. R. Tolkien"),
            ("Dr. Ada L.", None, "Dr. Ada L."),
            (None, "ada", "ada"),
            (None, None, "ada@example.com"),
            ("You have won! https://evil.example/prize", "ada", "ada"),
            ("You have won, see evil.example", "ada", "ada"),
            ("Win: www.evil.example", "evil.example", "ada@example.com"),
            ("prize@evil.example", "ada", "ada"),
        ],
    )
    async def test_is_greeted_without_a_link_that_somebody_chose(
        self, mailbox: Mailbox, full_name: str | None, username: str | None, greeted: str
    ) -> None:
        ada = await make_user(email="ada@example.com", full_name=full_name, is_verified=True)
        await ada.document.set({"username": username})
        await mail_service.enqueue(MailKind.PASSWORD_RESET, user_id=ada.id)

        await mail_service.send_next(sender_to(mailbox))

        assert text_of(await mailbox.next()).startswith(f"Hello {greeted},")

    @pytest.mark.parametrize("kind", list(MailKind))
    @pytest.mark.parametrize("to", [None, "old@example.com"])
    async def test_that_is_not_verified_reads_no_word_that_somebody_chose(
        self, mailbox: Mailbox, kind: MailKind, to: str | None
    ) -> None:
        ada = await make_user(email="ada@example.com", full_name="You have won", username="call-us-now")
        await mail_service.enqueue(kind, user_id=ada.id, to=to, values=VALUES)

        await mail_service.send_next(sender_to(mailbox))

        mail = await mailbox.next()
        assert text_of(mail).startswith(f"Hello {to or 'ada@example.com'},")
        everything = mail.as_string() + html_of(mail)
        assert [words for words in ("You have won", "call-us-now") if words in everything] == []


@pytest.mark.usefixtures("_database")
class TestRetry:
    @pytest.mark.parametrize("kind", [MailKind.PASSWORD_RESET, MailKind.EMAIL_VERIFICATION])
    async def test_sends_the_same_mail_with_the_same_link(self, mailbox: Mailbox, kind: MailKind) -> None:
        ada = await make_user()
        mailer = sender_to(mailbox)
        seen = []
        take_it_and_say_no(mailbox)
        await mail_service.enqueue(kind, user_id=ada.id)
        for _ in range(3):
            assert await mail_service.send_next(mailer)
            seen.append(await mailbox.next())
            await make_due()

        assert len({mail["Message-ID"] for mail in seen}) == 1
        assert len({link_in(mail) for mail in seen}) == 1
        assert await get_database()["one_time_tokens"].count_documents({}) == 1
        assert await AuditEvent.find({"action": "password_reset:requested"}).count() == (
            1 if kind is MailKind.PASSWORD_RESET else 0
        )

    async def test_waits_longer_each_time_up_to_an_hour(self, mailbox: Mailbox) -> None:
        ada = await make_user()
        await mail_service.enqueue(MailKind.MFA_ENABLED, user_id=ada.id, values=VALUES)
        mailer, pauses = sender_to(mailbox), []

        for _ in range(11):
            mailbox.refusals.append("451 Try again later")
            assert await mail_service.send_next(mailer)
            pauses.append(round(((await the_mail())["due_at"] - utc_now()).total_seconds(), -1))
            assert not await mail_service.send_next(mailer)
            await make_due()

        assert pauses == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]
        assert await mail_service.send_next(mailer)
        assert (await mailbox.next())["Subject"] == "Two-factor authentication is on"
        assert await outbox() == []

    async def test_ends_after_the_last_attempt_and_keeps_the_mail_as_failed(self, mailbox: Mailbox) -> None:
        ada = await make_user()
        await mail_service.enqueue(MailKind.MFA_ENABLED, user_id=ada.id, values=VALUES)
        await OutgoingMail.get_pymongo_collection().update_many({}, {"$set": {"attempts": 30}})
        mailer = sender_to(mailbox)
        mailbox.refusals += ["451 Try again later"] * 2

        with capture_logs() as logs:
            for _ in range(2):
                await make_due()
                assert await mail_service.send_next(mailer)

        failed = await the_mail()
        assert (failed["attempts"], failed["due_at"]) == (32, None)
        assert abs(failed["failed_at"] - utc_now()) < timedelta(minutes=1)
        assert not await mail_service.send_next(mailer)
        assert [(line["event"], line["log_level"]) for line in logs] == [
            ("mail_undelivered", "warning"),
            ("mail_failed", "error"),
        ]

    @pytest.mark.parametrize("at", ["DATA", "RCPT"])
    async def test_is_not_tried_when_the_server_will_never_take_the_mail(
        self, mailbox: Mailbox, at: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def refuse(*_: object) -> str:
            return "550 No such user"

        monkeypatch.setattr(mailbox, f"handle_{at}", refuse, raising=False)
        ada = await make_user(email="ada@example.com")
        await mail_service.enqueue(MailKind.PASSWORD_RESET, user_id=ada.id)

        with capture_logs() as logs:
            assert await mail_service.send_next(sender_to(mailbox))

        failed = await the_mail()
        assert (failed["attempts"], failed["due_at"]) == (1, None)
        assert abs(failed["failed_at"] - utc_now()) < timedelta(minutes=1)
        (line,) = [line for line in logs if "event.action" not in line]
        assert (line["event"], line["mail"], line["mail_kind"]) == ("mail_failed", str(failed["_id"]), "password_reset")

    @pytest.mark.parametrize(
        ("kind", "minutes"), [(MailKind.PASSWORD_RESET, 60), (MailKind.EMAIL_VERIFICATION, 24 * 60)]
    )
    async def test_sends_the_link_for_as_long_as_it_is_good_and_makes_it_good_for_no_longer(
        self, mailbox: Mailbox, kind: MailKind, minutes: int
    ) -> None:
        ada = await make_user()
        mailer, seen = sender_to(mailbox), []
        take_it_and_say_no(mailbox)
        await mail_service.enqueue(kind, user_id=ada.id)
        for minutes_more in (minutes - 1, 2):
            assert await mail_service.send_next(mailer)
            seen.append(await mailbox.next())
            (token,) = await get_database()["one_time_tokens"].find().to_list()
            assert token["expires_at"] - token["created_at"] == timedelta(minutes=minutes)
            await let_pass(timedelta(minutes=minutes_more))

        assert await mail_service.send_next(mailer)
        assert mailbox.mails.empty()
        assert await outbox() == []
        assert len({link_in(mail) for mail in seen}) == 1

    async def test_says_until_when_the_link_is_good(self, mailbox: Mailbox) -> None:
        ada = await make_user()
        take_it_and_say_no(mailbox)
        await mail_service.enqueue(MailKind.PASSWORD_RESET, user_id=ada.id)
        for _ in range(2):
            await mail_service.send_next(sender_to(mailbox))
            text = " ".join(text_of(await mailbox.next()).split())
            (token,) = await get_database()["one_time_tokens"].find().to_list()
            assert f"works once, until {token['expires_at']:%d %B %Y, %H:%M} UTC." in text
            await let_pass(timedelta(minutes=30))

    @pytest.mark.parametrize(
        ("kind", "minutes"), [(MailKind.PASSWORD_RESET, 60), (MailKind.EMAIL_VERIFICATION, 24 * 60)]
    )
    async def test_drops_a_mail_that_has_waited_for_the_whole_life_of_a_link(
        self, mailbox: Mailbox, kind: MailKind, minutes: int
    ) -> None:
        for waited in (minutes + 1, minutes - 1):
            ada = await make_user(email=f"waited{waited}@example.com")
            await mail_service.enqueue(kind, user_id=ada.id)
            await let_pass(timedelta(minutes=waited))
            assert await mail_service.send_next(sender_to(mailbox))
            assert await outbox() == []

        assert (await mailbox.next())["To"] == f"waited{minutes - 1}@example.com"
        assert mailbox.mails.empty()

    async def test_drops_no_late_mail_without_a_link(self, mailbox: Mailbox) -> None:
        ada = await make_user()
        await mail_service.enqueue(MailKind.MFA_ENABLED, user_id=ada.id, values=VALUES)
        await let_pass(timedelta(hours=30))

        await mail_service.send_next(sender_to(mailbox))

        assert (await mailbox.next())["Subject"] == "Two-factor authentication is on"


@pytest.mark.usefixtures("_database")
class TestLinksOfADay:
    """Whoever knows an address can have mails sent there: a few."""

    async def ask(self, mailbox: Mailbox, kind: MailKind, user: StoredUser, after: timedelta) -> bool:
        """Whether a mail was sent."""
        await let_pass(after)
        await mail_service.enqueue(kind, user_id=user.id)
        assert await mail_service.send_next(sender_to(mailbox))
        assert await outbox() == []
        return not mailbox.mails.empty() and bool(mailbox.mails.get_nowait())

    @pytest.mark.parametrize("kind", [MailKind.PASSWORD_RESET, MailKind.EMAIL_VERIFICATION])
    async def test_are_five_of_a_kind(self, mailbox: Mailbox, kind: MailKind) -> None:
        ada = await make_user()

        sent = [await self.ask(mailbox, kind, ada, timedelta(hours=3)) for _ in range(9)]
        next_day = await self.ask(mailbox, kind, ada, timedelta(hours=1))

        # The first is a day old when the ninth is asked for.
        assert sent == [True] * 5 + [False] * 3 + [True]
        assert not next_day

    async def test_leave_the_owner_of_a_verified_address_a_way_in(self, mailbox: Mailbox) -> None:
        ada, reset = await make_user(is_verified=True), MailKind.PASSWORD_RESET

        sent = [await self.ask(mailbox, reset, ada, timedelta(minutes=2)) for _ in range(6)]
        within_the_hour = await self.ask(mailbox, reset, ada, timedelta(minutes=51))
        later = [await self.ask(mailbox, reset, ada, timedelta(minutes=61)) for _ in range(8)]

        # Three in a row; then one whenever the one before has had its hour.
        assert sent == [True] * 3 + [False] * 3
        assert (within_the_hour, later) == (False, [True] * 8)

    async def test_are_counted_for_each_kind_user_and_address(self, mailbox: Mailbox) -> None:
        ada, ben = await make_user(), await make_user()
        kinds, minute = (MailKind.PASSWORD_RESET, MailKind.EMAIL_VERIFICATION), timedelta(seconds=61)
        assert [await self.ask(mailbox, kinds[0], ada, minute) for _ in range(6)] == [True] * 5 + [False]

        assert await self.ask(mailbox, kinds[1], ada, minute)
        assert await self.ask(mailbox, kinds[0], ben, minute)
        assert not await self.ask(mailbox, kinds[0], ada, minute)
        await ada.document.set({"email": "new@example.com", "email_key": "new@example.com"})
        assert await self.ask(mailbox, kinds[0], ada, minute)

    async def test_include_those_that_were_used(self, mailbox: Mailbox) -> None:
        ada, sent = await make_user(), 0
        for _ in range(7):
            sent += await self.ask(mailbox, MailKind.PASSWORD_RESET, ada, timedelta(minutes=2))
            await crud_one_time_token.void_all(ada.id, TokenPurpose.PASSWORD_RESET)

        assert sent == 5

    async def test_are_no_more_when_several_are_made_at_the_same_time(self, mailbox: Mailbox) -> None:
        ada = await make_user()
        for _ in range(4):
            assert await self.ask(mailbox, MailKind.PASSWORD_RESET, ada, timedelta(minutes=2))
        await let_pass(timedelta(minutes=2))
        for _ in range(4):
            await mail_service.enqueue(MailKind.PASSWORD_RESET, user_id=ada.id)

        await asyncio.gather(*(mail_service.send_next(sender_to(mailbox)) for _ in range(4)))

        assert mailbox.mails.qsize() == 1
        assert await get_database()["one_time_tokens"].count_documents({}) == 5

    async def test_are_counted_by_an_index(self, mailbox: Mailbox) -> None:
        ada, database = await make_user(), get_database()
        await database.command("profile", 2)
        try:
            assert await self.ask(mailbox, MailKind.PASSWORD_RESET, ada, timedelta(minutes=2))
        finally:
            await database.command("profile", 0)
        name = f"{database.name}.one_time_tokens"
        rows = await database["system.profile"].find({"ns": name, "planSummary": {"$exists": True}}).to_list()
        await database.drop_collection("system.profile")

        searches = [str(row["planSummary"]) for row in rows if "counted" in str(row) or row["op"] == "query"]
        assert len(searches) >= 2
        assert [plan for plan in searches if not plan.startswith(("IXSCAN", "IDHACK", "EOF"))] == []
        assert "IXSCAN { user_id: 1, purpose: 1, created_at: -1 }" in searches

    async def test_count_a_mail_once_that_is_sent_again(self, mailbox: Mailbox) -> None:
        ada = await make_user()
        for _ in range(4):
            mailbox.refusals += ["451 Try again later"] * 2
            await mail_service.enqueue(MailKind.PASSWORD_RESET, user_id=ada.id)
            for _ in range(3):
                await mail_service.send_next(sender_to(mailbox))
                await make_due()
            await let_pass(timedelta(minutes=2))

        assert mailbox.mails.qsize() == 4
        mailbox.mails.get_nowait()
        for left in (True, False):
            while not mailbox.mails.empty():
                mailbox.mails.get_nowait()
            assert await self.ask(mailbox, MailKind.PASSWORD_RESET, ada, timedelta(minutes=2)) is left


@pytest.mark.usefixtures("_database")
class TestSender:
    async def test_is_one_for_each_mail_however_many_there_are(self, mailbox: Mailbox) -> None:
        users = [await make_user() for _ in range(6)]
        for user in users:
            await mail_service.enqueue(MailKind.MFA_ENABLED, user_id=user.id, values=VALUES)
        mailer = sender_to(mailbox)

        async def send_all() -> None:
            while await mail_service.send_next(mailer):
                pass

        await asyncio.gather(*(send_all() for _ in range(4)))

        got = [mailbox.mails.get_nowait()["To"] for _ in range(mailbox.mails.qsize())]
        assert sorted(got) == sorted(user.document.email for user in users)

    async def test_keeps_a_mail_to_itself_while_it_sends(
        self, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ada = await make_user()
        await mail_service.enqueue(MailKind.MFA_ENABLED, user_id=ada.id, values=VALUES)
        asked, go_on = asyncio.Event(), asyncio.Event()
        answer = mailbox.handle_DATA

        async def hesitate(*args: Any) -> str:
            asked.set()
            await go_on.wait()
            return await answer(*args)

        monkeypatch.setattr(mailbox, "handle_DATA", hesitate)
        first = asyncio.create_task(mail_service.send_next(sender_to(mailbox)))
        await asked.wait()

        assert not await mail_service.send_next(sender_to(mailbox))
        go_on.set()
        assert await first
        assert mailbox.mails.qsize() == 1

    async def test_that_died_is_followed_by_another_after_a_minute_and_a_half(self, mailbox: Mailbox) -> None:
        ada = await make_user()
        await mail_service.enqueue(MailKind.MFA_ENABLED, user_id=ada.id, values=VALUES)
        assert await crud_outgoing_mail.claim_next() is not None  # by one that is killed now

        left = (await the_mail())["due_at"] - utc_now()
        assert timedelta(seconds=85) < left <= timedelta(seconds=90)
        assert not await mail_service.send_next(sender_to(mailbox))
        await make_due()
        assert await mail_service.send_next(sender_to(mailbox))
        assert mailbox.mails.qsize() == 1

    async def test_goes_on_with_the_others_when_one_can_not_be_made(self, mailbox: Mailbox) -> None:
        ada = await make_user(email="ada@example.com")
        await mail_service.enqueue(MailKind.MFA_ENABLED, user_id=ada.id, values={})  # without what its template wants
        await mail_service.enqueue(MailKind.MFA_DISABLED, user_id=ada.id, values=VALUES)
        mailer = sender_to(mailbox)

        with capture_logs() as logs:
            while await mail_service.send_next(mailer):
                pass

        assert (await mailbox.next())["Subject"] == "Two-factor authentication is off"
        left = await the_mail()
        assert (left["kind"], left["attempts"], left["failed_at"]) == ("mfa_enabled", 1, None)
        assert [line["event"] for line in logs] == ["mail_undelivered"]

    async def test_sends_first_what_has_been_due_longest(self, mailbox: Mailbox) -> None:
        now = utc_now()
        for hours in (1, 3, 2):
            user = await make_user(email=f"due{hours}@example.com")
            mail = OutgoingMail(kind=MailKind.MFA_ENABLED, user_id=user.id, values=VALUES)
            mail.due_at = now - timedelta(hours=hours)
            await mail.insert()

        while await mail_service.send_next(sender_to(mailbox)):
            pass

        assert [(await mailbox.next())["To"] for _ in range(3)] == [f"due{hours}@example.com" for hours in (3, 2, 1)]

    async def test_writes_the_audit_trail_of_the_request_behind_the_mail(self, mailbox: Mailbox) -> None:
        ada = await make_user()
        set_context(RequestContext("req-7", "203.0.113.9", "Netscape 4"))
        await mail_service.enqueue(MailKind.PASSWORD_RESET, user_id=ada.id)
        set_context(RequestContext("req-8", "203.0.113.10", "Mosaic"))

        await mail_service.send_next(sender_to(mailbox))

        event = await AuditEvent.find_one({"action": "password_reset:requested"})
        assert event is not None
        assert (event.request_id, event.ip) == ("req-7", "203.0.113.9")


@pytest.mark.usefixtures("_database")
class TestLinkOfAMailSentTwice:
    """A server has taken the mail, and the sender never heard of it."""

    async def send_unheard(self, mailbox: Mailbox, kind: MailKind = MailKind.PASSWORD_RESET) -> tuple[StoredUser, str]:
        ada = await make_user()
        await mail_service.enqueue(kind, user_id=ada.id)
        mail = await crud_outgoing_mail.claim_next()
        assert mail is not None
        await mail_service._send(mail, sender_to(mailbox))
        return ada, token_in(await mailbox.next())

    async def send_again(self, mailbox: Mailbox) -> None:
        await make_due()
        while await mail_service.send_next(sender_to(mailbox)):
            pass

    async def test_is_not_good_again_once_it_was_used(self, mailbox: Mailbox) -> None:
        ada, token = await self.send_unheard(mailbox)
        await password_service.reset(token, NEW_PASSWORD)

        await self.send_again(mailbox)

        assert (await mailbox.next())["Subject"] == "Your password was changed"
        assert mailbox.mails.empty()
        with pytest.raises(InvalidTokenError):
            await password_service.reset(token, "another-Walrus-19-lagoon")
        assert (await crud_user.require(ada.id)).hashed_password != ada.document.hashed_password

    async def test_is_not_good_again_once_the_password_was_changed(self, mailbox: Mailbox) -> None:
        ada, token = await self.send_unheard(mailbox)
        body = OwnUserUpdate(password=NEW_PASSWORD, current_password=PASSWORD)
        caller = Principal.of_user(ada.id, name=None, role=ada.document.role, session_id=ObjectId())
        await user_service.update(ada.id, body, versions=None, by=caller)

        await self.send_again(mailbox)

        assert (await mailbox.next())["Subject"] == "Your password was changed"
        assert mailbox.mails.empty()
        with pytest.raises(InvalidTokenError):
            await password_service.reset(token, "another-Walrus-19-lagoon")

    async def test_is_not_made_by_a_sender_that_was_overtaken(self, mailbox: Mailbox) -> None:
        _, token = await self.send_unheard(mailbox)
        await make_due()
        overtaken = await crud_outgoing_mail.claim_next()
        assert overtaken is not None
        await password_service.reset(token, NEW_PASSWORD)

        await mail_service._send(overtaken, sender_to(mailbox))

        assert mailbox.mails.empty()
        with pytest.raises(InvalidTokenError):
            await password_service.reset(token, "another-Walrus-19-lagoon")

    @pytest.mark.parametrize("what", ["used", "made void"])
    async def test_is_not_good_again_even_if_its_mail_is_in_the_outbox_still(self, mailbox: Mailbox, what: str) -> None:
        ada, token = await self.send_unheard(mailbox)
        mail = await the_mail()
        if what == "used":
            await password_service.reset(token, NEW_PASSWORD)
        else:
            await crud_one_time_token.void_all(ada.id, TokenPurpose.PASSWORD_RESET)
        await OutgoingMail.get_pymongo_collection().delete_many({})
        await OutgoingMail.get_pymongo_collection().insert_one(mail)

        await self.send_again(mailbox)

        assert mailbox.mails.empty()
        with pytest.raises(InvalidTokenError):
            await password_service.reset(token, "another-Walrus-19-lagoon")

    async def test_that_verifies_an_address_is_not_good_again_once_it_was_used(self, mailbox: Mailbox) -> None:
        ada, token = await self.send_unheard(mailbox, MailKind.EMAIL_VERIFICATION)
        await verification_service.verify(token)
        await ada.document.set({"is_verified": False})

        await self.send_again(mailbox)

        assert mailbox.mails.empty()
        with pytest.raises(InvalidTokenError):
            await verification_service.verify(token)

    async def test_that_verifies_an_address_is_sent_to_no_other(self, mailbox: Mailbox) -> None:
        """Who registered a stranger's address would get a link that verifies it."""
        ada, _ = await self.send_unheard(mailbox, MailKind.EMAIL_VERIFICATION)
        await ada.document.set({"email": "other@example.com", "email_key": "other@example.com"})

        await self.send_again(mailbox)

        assert mailbox.mails.empty()
        assert await outbox() == []


class TestApplication:
    async def test_sends_after_the_answer_and_at_once(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url) as client:
            assert (await client.post("/api/v1/users", json=ADA)).status_code == 201

            async with asyncio.timeout(5):  # it looks for what is due only every 10 s
                mail = await mailbox.next("Verify your e-mail address")
            await verify(client, mail)

    async def test_sends_what_was_left_by_one_that_had_no_mail_server(self, serve: Serve, mailbox: Mailbox) -> None:
        async with reserved_port() as (_, port), serve(smtp_url=f"smtp://127.0.0.1:{port}") as client:
            assert (await client.post("/api/v1/users", json=ADA)).status_code == 201
            await until_outbox(lambda mails: tried(mails[0]))

        async with serve(smtp_url=mailbox.url) as client:
            await make_due()  # not before: the first one could take it as it stops
            mail_service._wake()
            await verify(client, await mailbox.next("Verify your e-mail address"))

    async def test_tries_again_once_the_server_is_up(self, serve: Serve) -> None:
        async with reserved_port() as (reserved, port), serve(smtp_url=f"smtp://127.0.0.1:{port}") as client:
            assert (await client.post("/api/v1/users", json=ADA)).status_code == 201
            await until_outbox(lambda mails: tried(mails[0]))

            mailbox, loop = Mailbox(), asyncio.get_running_loop()
            server = await loop.create_server(lambda: SMTP(mailbox, loop=loop), sock=reserved)
            async with server:
                await make_due()
                mail_service._wake()
                await verify(client, await mailbox.next("Verify your e-mail address"))

    async def test_sends_nothing_of_a_transaction_that_failed(self, serve: Serve, mailbox: Mailbox) -> None:
        body = {"current_password": PASSWORD, "password": NEW_PASSWORD}
        async with serve(smtp_url=mailbox.url) as client:
            ada = await make_signed_in()
            async with no_event_can_be_written():
                response = await client.post("/api/v1/auth/password/change", json=body, headers=ada.headers)
            assert response.status_code == 500
            assert await outbox() == []
            await client.post("/api/v1/users", json=ADA)

            assert (await mailbox.next())["To"] == "ada@example.com"
            assert mailbox.mails.empty()

    @pytest.mark.parametrize("outcome", ["sent", "nothing to send", "failed"])
    async def test_stops_at_once_though_the_driver_swallows_the_cancellation(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch, outcome: str
    ) -> None:
        began = asyncio.Event()

        async def swallow(_: object) -> bool:
            is_first = not began.is_set()
            began.set()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60 if is_first else 0)
            if outcome == "failed":
                raise ConnectionError("The database is away.")
            return outcome == "sent"

        monkeypatch.setattr(mail_service, "send_next", swallow)
        async with asyncio.timeout(5):
            async with serve():
                await began.wait()

    async def test_is_not_stopped_by_a_fault_of_the_outbox(
        self, serve: Serve, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failed, claim = asyncio.Event(), crud_outgoing_mail.claim_next

        async def fail_once() -> OutgoingMail | None:
            if not failed.is_set():
                failed.set()
                raise ConnectionError("The database is away.")
            return await claim()

        monkeypatch.setattr(crud_outgoing_mail, "claim_next", fail_once)
        async with serve(smtp_url=mailbox.url) as client:
            await failed.wait()
            await client.post("/api/v1/users", json=ADA)

            assert (await mailbox.next())["To"] == "ada@example.com"

    async def test_writes_files_when_there_is_no_mail_server(self, serve: Serve, tmp_path: Path) -> None:
        async with serve() as client:
            await client.post("/api/v1/users", json=ADA)
            await until_outbox(lambda mails: not mails)

            (mail,) = mails_in(tmp_path / "outbox")
            assert (mail["To"], mail["Subject"]) == ("ada@example.com", "Verify your e-mail address")
            await verify(client, mail)


class TestSecrets:
    async def test_lie_in_no_collection(self, serve: Serve, mailbox: Mailbox) -> None:
        ada = await self.stored_ada(serve, mailbox)
        async with serve(smtp_url=mailbox.url):
            database = get_database()
            stored = {
                name: str(await database[name].find().to_list()) for name in await database.list_collection_names()
            }
        assert {"outbox", "one_time_tokens", "audit_events", "users"} <= stored.keys()
        assert "one_time_tokens" in [name for name, text in stored.items() if ada[0].partition(".")[0] in text]
        secrets = [part for token in ada for part in (token, token.partition(".")[2])]
        assert [name for name, text in stored.items() for secret in secrets if secret in text] == []

    async def stored_ada(self, serve: Serve, mailbox: Mailbox) -> list[str]:
        """The tokens that Ada was mailed, while the mails lie in the outbox still."""
        take_it_and_say_no(mailbox)
        async with serve(smtp_url=mailbox.url) as client:
            await client.post("/api/v1/users", json=ADA)
            tokens = [token_in(await mailbox.next("Verify your e-mail address"))]
            await client.post("/api/v1/auth/password/forgot", json={"email": ADA["email"]})
            tokens.append(token_in(await mailbox.next("Reset your password")))
            await until_outbox(lambda mails: len(mails) == 2 and all(tried(mail) for mail in mails))
        return tokens


class TestKill:
    async def test_right_after_the_answer_loses_no_mail(
        self, serve: Serve, mailbox: Mailbox, database_url: str, short_folder: Path
    ) -> None:
        async with reserved_port() as (silent, port):
            silent.listen()  # takes connections and never says a word, as a mail server that hangs
            killed = Server(
                short_folder,
                DATABASE_URL=database_url,
                SECRET_KEY=SECRET,
                ENCRYPTION_KEYS=ENCRYPTION_KEY,
                SMTP_URL=f"smtp://127.0.0.1:{port}",
            )
            try:
                await asyncio.to_thread(killed.ready)
                answer = await asyncio.to_thread(killed.post, "/api/v1/users", dict(ADA))
            finally:
                killed.kill()
        assert answer.status_code == 201

        async with serve(smtp_url=mailbox.url) as client:
            await self.make_due_once_the_dead_lets_go()
            mail_service._wake()
            await verify(client, await mailbox.next("Verify your e-mail address"))

    async def make_due_once_the_dead_lets_go(self) -> None:
        """It may have been killed while it made the link: the server ends such a transaction after a minute."""
        async with asyncio.timeout(90):
            while True:
                with suppress(NetworkTimeout):
                    return await make_due()


def tried(mail: Raw) -> bool:
    """Whether an attempt has failed: a claim lasts longer than the pause after it."""
    due_at: datetime = mail["due_at"]
    return mail["attempts"] == 1 and due_at - utc_now() <= timedelta(seconds=10)


def take_it_and_say_no(mailbox: Mailbox) -> None:
    """Let it keep mails and refuse them for now: what the sender does about it can be seen."""
    take = mailbox.handle_DATA

    async def answer(server: SMTP, session: Session, envelope: Envelope) -> str:
        await take(server, session, envelope)
        return "451 Try again later"

    vars(mailbox)["handle_DATA"] = answer


@asynccontextmanager
async def reserved_port() -> AsyncIterator[tuple[socket.socket, int]]:
    """A port that is ours and refuses connections until somebody listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved, reserved.getsockname()[1]


def mails_in(folder: Path) -> list[EmailMessage]:
    return [message_from_bytes(path.read_bytes(), policy=policy.default) for path in folder.glob("*.eml")]


async def verify(client: AsyncClient, mail: EmailMessage) -> None:
    """Follow the link of the mail."""
    response = await client.post("/api/v1/auth/email/verify", json={"token": token_in(mail)})
    assert response.status_code == 204
    ada = await crud_user.find_by_email_key("ada@example.com")
    assert ada is not None
    assert ada.is_verified
