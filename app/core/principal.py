"""Who is calling, whatever credential they used: a plain value that outlives the request."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property

from bson import ObjectId

from app.core.config import get_settings
from app.core.exceptions import ForbiddenError, InsufficientScopeError, UnauthenticatedError
from app.core.quota import Quota
from app.core.scopes import ALL, NO_GRANT, Grant, Role, Scope, Scopes, grant_of


class PrincipalKind(StrEnum):
    USER = "user"
    API_KEY = "api_key"
    SYSTEM = "system"
    ANONYMOUS = "anonymous"


@dataclass(frozen=True)
class Principal:
    """One caller.

    `user_id` is the account it acts as: a user's own, the owner's for a personal key, none for a
    service key. `credential_id` is the session or the key. `allowed_ips`, `rate_limit`, `expires_at` and `quota` are
    a key's own, the quota counted under `lineage_id`; `plan_rate_limit` is that of the account's plan. `must_enrol`:
    its role needs a second factor, and without one it holds nothing. `token_expires_at` is for what outlives a request.
    """

    kind: PrincipalKind
    name: str | None
    grant: Grant
    user_id: ObjectId | None = None
    credential_id: ObjectId | None = None
    role: Role | None = None
    allowed_ips: tuple[str, ...] = ()
    rate_limit: str | None = None
    plan_rate_limit: str | None = None
    must_enrol: bool = False
    expires_at: datetime | None = None
    quota: Quota | None = None
    lineage_id: ObjectId | None = None
    token_expires_at: datetime | None = field(default=None, compare=False)

    @classmethod
    def of_user(
        cls,
        user_id: ObjectId,
        *,
        name: str | None,
        role: Role,
        session_id: ObjectId,
        staff_level: int | None = None,
        has_mfa: bool = False,
        rate_limit: str | None = None,
        token_expires_at: datetime | None = None,
    ) -> "Principal":
        must_enrol = role in get_settings().require_mfa_for and not has_mfa
        return cls(
            kind=PrincipalKind.USER,
            name=name,
            grant=NO_GRANT if must_enrol else grant_of(role, staff_level),
            user_id=user_id,
            credential_id=session_id,
            role=role,
            plan_rate_limit=rate_limit,
            must_enrol=must_enrol,
            token_expires_at=token_expires_at,
        )

    @classmethod
    def system(cls, name: str) -> "Principal":
        """The operator at the keyboard, or the service itself; `name` is the script or the job."""
        return cls(PrincipalKind.SYSTEM, name, Grant(own=ALL, others=ALL), role=Role.SUPERUSER)

    @cached_property
    def id(self) -> ObjectId | None:
        """What the audit trail knows the caller by."""
        return self.user_id if self.kind is PrincipalKind.USER else self.credential_id

    @property
    def account_id(self) -> ObjectId:
        """The account it acts as. A service key acts as none: `ForbiddenError`."""
        if self.user_id is None:
            raise ForbiddenError("These credentials belong to no user.")
        return self.user_id

    @property
    def session_id(self) -> ObjectId:
        """The session in use. An API key has none: `ForbiddenError`."""
        if self.kind is not PrincipalKind.USER or self.credential_id is None:
            raise ForbiddenError("Only a signed-in user has a session.")
        return self.credential_id

    @property
    def signed_in_id(self) -> ObjectId:
        """The account of a signed-in user.

        `UnauthenticatedError` for nobody. An API key is nobody signed in, whoever owns it: `ForbiddenError`.
        """
        if self.kind is PrincipalKind.ANONYMOUS:
            raise UnauthenticatedError
        if self.kind is not PrincipalKind.USER:
            raise ForbiddenError("Only a signed-in user has a session.")
        return self.account_id

    @cached_property
    def ends_at(self) -> datetime | None:
        """When the token or key in use stops being good."""
        return self.token_expires_at or self.expires_at

    @cached_property
    def scopes(self) -> Scopes:
        return self.grant.own | self.grant.others

    @cached_property
    def scope(self) -> str:
        """What it may ask for, as OAuth 2 writes it: names separated by spaces."""
        return " ".join(sorted(self.scopes))

    @cached_property
    def is_superuser(self) -> bool:
        """Whether a superuser acts in person. No key does, not even a superuser's own."""
        return self.role is Role.SUPERUSER and self.kind is not PrincipalKind.API_KEY

    @cached_property
    def rank(self) -> int:
        """Rank among roles. A key ranks with the role whose work it may do, and never as a superuser."""
        if self.is_superuser:
            return Role.SUPERUSER.rank
        if self.role is not None:
            return min(self.role.rank, Role.ADMIN.rank)
        return Role.ADMIN.rank if Scope.ADMIN in self.grant.others else Role.SUPPORT.rank

    @cached_property
    def rate_key(self) -> str:
        """Whose budget of requests this is: a personal key spends its own, not its owner's."""
        return f"{self.kind}:{self.id}"

    def reaches_all(self, scope: Scope) -> bool:
        """True when the scope is held over everybody's resources, false when only over its own."""
        return scope in self.grant.others

    def owner_filter(self, scope: Scope) -> ObjectId | None:
        """The owner that queries under this scope must be limited to; none when everything is in reach.

        A service key that does not reach everything owns nothing either: `InsufficientScopeError`.
        """
        if self.reaches_all(scope):
            return None
        if self.user_id is None:
            raise InsufficientScopeError(f"This needs the scope {scope}.", needed=scope)
        return self.user_id


ANONYMOUS = Principal(PrincipalKind.ANONYMOUS, None, NO_GRANT)
