"""What staff does for the accounts of others: only for those of lower rank, and never without a trace."""

from bson import ObjectId

from app.core.clock import utc_now
from app.core.principal import Principal
from app.crud import crud_session, crud_usage, crud_user
from app.db.mongo import transactional
from app.models.enums import AuditAction
from app.models.user import User
from app.schemas.staff import CreditsAdd, PlanChange
from app.services import audit_service, throttle_service, user_service
from app.services.throttle_service import REAUTHENTICATION, SECOND_FACTOR, SIGN_IN


@transactional
async def reset_limits(user_id: ObjectId, *, reason: str | None, by: Principal) -> User:
    """Let the user go on today, whatever it has used up, and sign in, however often that has failed."""
    user = await _require_below(user_id, by=by)
    await crud_usage.reset_messages(user.id, day=crud_usage.day_of(utc_now()))
    await throttle_service.clear(user.id, SIGN_IN, REAUTHENTICATION, SECOND_FACTOR)
    await audit_service.record(AuditAction.USER_LIMITS_RESET, by=by, target=("user", user.id), reason=reason)
    return user


async def set_active(user_id: ObjectId, *, is_active: bool, reason: str | None, by: Principal) -> User:
    """Open an account, or close it and end its sessions."""
    user = await _require_below(user_id, by=by)
    return await user_service.change(
        user, {"is_active": is_active}, expected={"role": user.role}, versions=None, by=by, reason=reason
    )


@transactional
async def revoke_sessions(user_id: ObjectId, *, reason: str | None, by: Principal) -> int:
    """End every session of a user. How many there were."""
    user = await _require_below(user_id, by=by)
    count = await crud_session.end_all(user.id)
    await audit_service.record(AuditAction.SESSIONS_ENDED, by=by, target=("user", user.id), count=count, reason=reason)
    return count


@transactional
async def add_credits(user_id: ObjectId, body: CreditsAdd, *, by: Principal) -> User:
    """Add credits, or take them away: never more than there are."""
    user = await _require_below(user_id, by=by)
    changed = await crud_user.add_credits(user.id, body.amount, expected={"role": user.role})
    await audit_service.record(
        AuditAction.USER_CREDITED,
        by=by,
        target=("user", user.id),
        amount=body.amount,
        credits=changed.credits,
        reason=body.reason,
    )
    return changed


async def change_plan(user_id: ObjectId, body: PlanChange, *, by: Principal) -> User:
    """Put an account on a plan, from its next request on."""
    user = await _require_below(user_id, by=by)
    return await user_service.change(
        user, {"plan": body.plan}, expected={"role": user.role}, versions=None, by=by, reason=body.reason
    )


async def _require_below(user_id: ObjectId, *, by: Principal) -> User:
    user = await crud_user.require(user_id)
    user_service.require_rank_above(user, by=by)
    return user
