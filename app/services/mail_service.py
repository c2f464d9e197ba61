"""The one way mails are sent: put into the outbox with the change they tell of, sent after the answer, tried again.

A mail is sent at least once. It is removed from the outbox after a server has taken it, so a process that ends in
between leaves it to the next one.
"""

import asyncio
import re
from datetime import timedelta
from typing import Any, Final

from bson import ObjectId

from app.core.clock import utc_now
from app.core.config import get_settings
from app.core.context import RequestContext, current_context, set_context
from app.core.exceptions import MailRefusedError, MailUndeliveredError
from app.core.logging_config import get_logger
from app.core.mail_templates import render_mail
from app.core.mailer import Mailer, compose, mailer_of
from app.core.tasks import is_cancelled
from app.crud import crud_outgoing_mail, crud_user
from app.db.mongo import after_commit
from app.models.enums import MailKind
from app.models.outgoing_mail import OutgoingMail
from app.models.user import User
from app.services import link_service

_LOOK_EVERY_SECONDS: Final = 10  # for what other processes left, and what has become due
_FIRST_PAUSE: Final = timedelta(seconds=10)
_LONGEST_PAUSE: Final = timedelta(hours=1)
_ATTEMPTS: Final = 32  # with these pauses, about a day
_LINK_LIKE: Final = re.compile(r"[/@]|\w\.\w{2}")

_log = get_logger(__name__)


class _State:
    has_mail: asyncio.Event | None = None


async def enqueue(
    kind: MailKind,
    *,
    user_id: ObjectId | None = None,
    account: dict[str, str] | None = None,
    to: str | None = None,
    values: dict[str, Any] | None = None,
) -> None:
    """Put a mail into the outbox, to the account of that id or name, at its address of the moment it is sent, or `to`.

    Call it inside the transaction that it tells of. Nothing of `values` may be a secret.
    """
    request = current_context()
    await OutgoingMail(
        kind=kind,
        user_id=user_id,
        account=account,
        to=to,
        values=values or {},
        request={"request_id": request.request_id, "ip": request.client_ip, "user_agent": request.user_agent},
    ).insert()
    after_commit(_wake)


def circumstances() -> dict[str, Any]:
    """When and from where something was done, as mails say it."""
    return {"at": f"{utc_now():%d %B %Y, %H:%M} UTC", "ip": current_context().client_ip or "an unknown address"}


def harmless(name: str | None) -> str | None:
    """The name, unless mail programs would make a link of it: whoever chose it may not be who reads the mail."""
    return name if name and not _LINK_LIKE.search(name) else None


async def send_forever() -> None:
    """Send what is in the outbox, and what comes, until cancelled."""
    _State.has_mail = asyncio.Event()
    mailer = mailer_of(get_settings())
    while not is_cancelled():  # the driver may swallow the cancellation
        try:
            if await send_next(mailer):
                continue
        except Exception as error:  # noqa: BLE001 - the database is away, say: the next look may find it
            _log.warning("outbox_stopped", exc_info=error)
        if not is_cancelled():
            await _sleep_until_mail(_State.has_mail)


async def send_next(mailer: Mailer) -> bool:
    """Send the mail that has been due longest. False when none is due."""
    mail = await crud_outgoing_mail.claim_next()
    if mail is None:
        return False
    request = mail.request
    set_context(RequestContext(request.get("request_id"), request.get("ip"), request.get("user_agent")))
    try:
        await _send(mail, mailer)
    except MailRefusedError as error:
        await _give_up(mail, error)
    except Exception as error:  # noqa: BLE001 - a mail that can't be made must not keep the others back
        await _try_later(mail, error)
    else:
        await crud_outgoing_mail.remove(mail.id)
    return True


async def _try_later(mail: OutgoingMail, error: Exception) -> None:
    if mail.attempts >= _ATTEMPTS:
        await _give_up(mail, error)
        return
    is_foreseen = isinstance(error, MailUndeliveredError)
    _log.warning("mail_undelivered", mail=str(mail.id), attempts=mail.attempts, exc_info=None if is_foreseen else error)
    pause = min(_FIRST_PAUSE * 2 ** min(mail.attempts - 1, 20), _LONGEST_PAUSE)
    await crud_outgoing_mail.postpone(mail.id, utc_now() + pause)


async def _send(mail: OutgoingMail, mailer: Mailer) -> None:
    """Send it, unless there is nobody to send it to."""
    user = await _recipient(mail)
    if user is None:
        return
    values = mail.values
    if mail.kind in link_service.PURPOSE_OF_MAIL:
        link = await link_service.make(mail, user)
        if link is None:
            return
        values = values | link
    to = mail.to or user.email
    rendered = render_mail(mail.kind, {"name": _name(user) or to, "email": user.email, **values})
    message = compose(rendered, mail_id=str(mail.id), sender=get_settings().mail_from, to=to)
    await mailer.send(message)


def _name(user: User) -> str | None:
    """How to greet it.

    None when its address is not verified: anyone may register a stranger's address, with a message as the name.
    """
    return harmless(user.full_name) or harmless(user.username) if user.is_verified else None


async def _recipient(mail: OutgoingMail) -> User | None:
    if mail.user_id is not None:
        return await crud_user.find(mail.user_id)
    account = mail.account or {}
    if "email_key" in account:
        return await crud_user.find_by_email_key(account["email_key"])
    return await crud_user.find_by_username_key(account["username_key"])


async def _give_up(mail: OutgoingMail, error: Exception) -> None:
    _log.error("mail_failed", mail=str(mail.id), mail_kind=mail.kind, attempts=mail.attempts, exc_info=error)
    await crud_outgoing_mail.give_up(mail.id)


async def _sleep_until_mail(has_mail: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_LOOK_EVERY_SECONDS):
            await has_mail.wait()
    except TimeoutError:
        return
    has_mail.clear()


def _wake() -> None:
    if _State.has_mail is not None:
        _State.has_mail.set()
