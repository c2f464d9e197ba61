"""Whether an e-mail address is its user's."""

from app.core.principal import ANONYMOUS
from app.crud import crud_one_time_token, crud_session, crud_user
from app.db.mongo import transactional
from app.models.enums import AuditAction, TokenPurpose
from app.services import audit_service, link_service


@transactional
async def verify(token: str) -> None:
    """Verify an address by the link of a mail, which works once, as long as the address is still the user's.

    `InvalidTokenError` when the link is none of ours, was used, or has expired.
    """
    spent = await crud_one_time_token.spend(
        link_service.read(token, TokenPurpose.EMAIL_VERIFICATION), TokenPurpose.EMAIL_VERIFICATION
    )
    user = await crud_user.mark_verified(spent.user_id, email_key=spent.email_key) if spent else None
    if user is None:
        raise link_service.unusable()
    await crud_session.update_identity(user)
    await audit_service.record(AuditAction.USER_VERIFIED, by=ANONYMOUS, target=("user", user.id))
