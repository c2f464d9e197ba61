"""Who is limited how: each limit is spent here, shown in the headers of every answer, and refused with 429."""

from typing import Final

from bson import ObjectId
from fastapi import Request

from app.core.config import get_settings
from app.core.context import current_context
from app.core.exceptions import IpNotAllowedError, RateLimitedError, RejectedCredentialError
from app.core.metrics import RATE_LIMITED, REJECTED_CREDENTIALS
from app.core.network import household
from app.core.principal import Principal
from app.core.rate_limit import Budget, Charge, RateLimiter, narrowest

_EXPORTS: Final = "10/hour"


async def spend_anonymous(request: Request) -> None:
    await _spend(request, (get_settings().rate_limit_anonymous, "anonymous", household(current_context().client_ip)))


async def spend_credentials(request: Request) -> None:
    """For presenting credentials, and for every one that was rejected: guessing costs the guesser its budget."""
    current_context().has_spent_credentials = True
    await _spend(request, (get_settings().rate_limit_auth, "credentials", household(current_context().client_ip)))


async def spend_link(request: Request) -> None:
    """For a signed link that is good: a page shows many at once, and whoever gave them to it was let in."""
    rate = get_settings().rate_limit_authenticated
    await _spend(request, (rate, "signed link", household(current_context().client_ip)))


async def spend_if_presented(request: Request, secret: str | None) -> None:
    """For a password or token inside of another request: guessing it costs what signing in costs."""
    if secret is not None:
        await spend_credentials(request)


async def spend_authenticated(request: Request, principal: Principal) -> None:
    """The plan of an account may have a rate in place of the common one.

    So may a service key; a personal key has its own only besides what its owner has.
    """
    rate = principal.plan_rate_limit or get_settings().rate_limit_authenticated
    common = (rate, "authenticated", principal.rate_key)
    if principal.rate_limit is None:
        await _spend(request, common)
        return
    own = (principal.rate_limit, "key's own", principal.rate_key)
    await _spend(request, *((own,) if principal.user_id is None else (common, own)))


async def spend_key_creation(request: Request, principal: Principal) -> None:
    await _spend(request, (get_settings().rate_limit_key_create, "key creation", principal.rate_key))


async def spend_export(request: Request, account_id: ObjectId) -> None:
    """For reading all that an account has, whichever of its credentials asks for it."""
    await _spend(request, (_EXPORTS, "export", str(account_id)))


async def spend_on_refusal(request: Request, error: Exception) -> None:
    """Count a request that is refused before it has spent anything, so that probing is limited too.

    A rejected credential counts as one, wherever it was rejected. Health probes are exempt.
    """
    context = current_context()
    if isinstance(error, RejectedCredentialError | IpNotAllowedError):
        REJECTED_CREDENTIALS.add(error.code)
        if not context.has_spent_credentials:
            await spend_credentials(request)
    elif context.budget is None and not request.url.path.startswith("/health"):
        await spend_anonymous(request)


async def _spend(request: Request, *charges: Charge) -> None:
    limiter: RateLimiter = request.app.state.rate_limiter
    context, budget = current_context(), await limiter.spend(*charges)
    context.budget = budget if context.budget is None else narrowest((context.budget, budget))
    if budget.is_exceeded:
        RATE_LIMITED.add(budget.purpose)
        raise RateLimitedError(budget.seconds_left)


def headers_of(budget: Budget | None) -> list[tuple[bytes, bytes]]:
    """What an answer tells of the narrowest budget that its request met; nothing when it met none."""
    if budget is None:
        return []
    return [
        (b"x-ratelimit-limit", b"%d" % budget.limit),
        (b"x-ratelimit-remaining", b"%d" % budget.remaining),
        (b"x-ratelimit-reset", b"%d" % budget.resets_at),
    ]
