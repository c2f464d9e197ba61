"""What an endpoint may ask for by type: who is calling, and the parts of a request that many share."""

import re
from typing import Annotated, Final

from beanie import PydanticObjectId
from bson import ObjectId
from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from app.api import idempotency, rate_limit
from app.core.context import current_context
from app.core.exceptions import (
    AmbiguousCredentialsError,
    InsufficientScopeError,
    InvalidTokenError,
    IpNotAllowedError,
    MfaRequiredError,
    RejectedCredentialError,
    UnauthenticatedError,
)
from app.core.principal import ANONYMOUS, Principal
from app.core.scopes import Scope
from app.schemas.audit_query import AnchorQuery, AuditExportQuery, AuditQuery, KeyAuditQuery, KeysAuditQuery
from app.schemas.message_log import MessageLogQuery
from app.schemas.page import (
    ApiKeyQuery,
    ConversationQuery,
    DeletedUserQuery,
    ItemQuery,
    MessageQuery,
    PageQuery,
    UploadQuery,
    UserQuery,
)
from app.services import auth_service, key_quota_service

API_KEY_HEADER: Final = "octopus-api-key"


MUST_ENROL: Final = "Your role needs a second factor: set one up with POST /api/v1/auth/mfa/totp, then sign in again."


class Needs:
    """The principal of a request, holding a scope: over its own resources, or over everybody's.

    One dependency reads the headers itself; a chain of small ones costs more than the rest of the request.
    """

    def __init__(self, scope: Scope | None = None, *, over_others: bool = False) -> None:
        self.scope = scope
        self.over_others = over_others

    async def __call__(self, request: Request) -> Principal:
        principal = await self.admitted(request)
        await idempotency.begin(request, principal)
        await key_quota_service.draw(principal)
        return principal

    async def admitted(self, request: Request) -> Principal:
        """The same, before anything is drawn on the quota of its key."""
        principal = await _authenticated(request)
        if principal is None:
            raise UnauthenticatedError
        await rate_limit.spend_authenticated(request, principal)
        if self.scope is not None:
            if principal.must_enrol:
                raise MfaRequiredError(MUST_ENROL)
            self._require_scope(principal, self.scope)
        return principal

    def _require_scope(self, principal: Principal, scope: Scope) -> None:
        held = principal.grant.others if self.over_others else principal.scopes
        if scope not in held:
            raise InsufficientScopeError(f"This needs the scope {scope}.", needed=scope)


async def _authenticated(request: Request) -> Principal | None:
    """The principal that the request shows credentials of; none when it shows none."""
    tokens, keys = request.headers.getlist("authorization"), request.headers.getlist(API_KEY_HEADER)
    if not tokens and not keys:
        return None
    if len(tokens) + len(keys) > 1:
        raise AmbiguousCredentialsError
    principal = await (auth_service.authenticate_token(_bearer(tokens[0])) if tokens else _of_key(keys[0]))
    current_context().principal = principal
    current_context().log["principal"] = principal.rate_key
    return principal


async def _of_key(text: str) -> Principal:
    context = current_context()
    try:
        principal = await auth_service.authenticate_api_key(text, ip=context.client_ip)
    except (RejectedCredentialError, IpNotAllowedError) as error:
        known = error.context.get("api_key_id")
        context.api_key_id = known if isinstance(known, ObjectId) else None
        raise
    context.api_key_id = principal.credential_id
    return principal


def _bearer(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise InvalidTokenError("The Authorization header must read: Bearer <access token>.")
    return token


async def optional_principal(request: Request) -> Principal:
    principal = await _authenticated(request)
    if principal is None:
        await rate_limit.spend_anonymous(request)
        await idempotency.begin(request, ANONYMOUS)
        return ANONYMOUS
    await rate_limit.spend_authenticated(request, principal)
    await idempotency.begin(request, principal)
    await key_quota_service.draw(principal)
    return principal


async def _spend_anonymous(request: Request) -> None:
    await rate_limit.spend_anonymous(request)


async def _spend_credentials(request: Request) -> None:
    await rate_limit.spend_credentials(request)


async def key_creator(request: Request) -> Principal:
    principal = await Needs(Scope.API_KEYS_WRITE).admitted(request)
    await idempotency.begin(request, principal)
    await rate_limit.spend_key_creation(request, principal)
    await key_quota_service.draw(principal)
    return principal


_ETAG: Final = re.compile(r'(?:W/)?"(\d{1,15})(?:-[0-9a-f]*)?"')


async def if_match(request: Request) -> frozenset[int] | None:
    """The versions that `If-Match` names; none when it is absent or `*`. A foreign tag matches no version."""
    header = request.headers.get("if-match")
    if header is None or header.strip() == "*":
        return None
    tags = (_ETAG.fullmatch(tag.strip()) for tag in header.split(","))
    return frozenset(int(tag[1]) for tag in tags if tag)


class QueryOf:
    """The query parameters of a list, read as one model: the framework reads field by field, at many times the cost."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.model = model

    async def __call__(self, request: Request) -> BaseModel:
        try:
            return self.model.model_validate(dict(request.query_params))
        except ValidationError as error:
            issues = [{**issue, "loc": ("query", *issue["loc"])} for issue in error.errors(include_url=False)]
            raise RequestValidationError(issues) from error


Caller = Annotated[Principal, Depends(Needs())]
OptionalCaller = Annotated[Principal, Depends(optional_principal)]
UsersReader = Annotated[Principal, Depends(Needs(Scope.USERS_READ))]
UsersLister = Annotated[Principal, Depends(Needs(Scope.USERS_READ, over_others=True))]
UsersWriter = Annotated[Principal, Depends(Needs(Scope.USERS_WRITE))]
ItemsReader = Annotated[Principal, Depends(Needs(Scope.ITEMS_READ))]
ItemsWriter = Annotated[Principal, Depends(Needs(Scope.ITEMS_WRITE))]
StaffViewer = Annotated[Principal, Depends(Needs(Scope.STAFF_VIEW, over_others=True))]
StaffAssistant = Annotated[Principal, Depends(Needs(Scope.STAFF_ASSIST, over_others=True))]
StaffManager = Annotated[Principal, Depends(Needs(Scope.STAFF_MANAGE, over_others=True))]
Administrator = Annotated[Principal, Depends(Needs(Scope.ADMIN, over_others=True))]
AuditReader = Annotated[Principal, Depends(Needs(Scope.AUDIT_READ, over_others=True))]
TokenInspector = Annotated[Principal, Depends(Needs(Scope.TOKENS_INTROSPECT, over_others=True))]
UsageWriter = Annotated[Principal, Depends(Needs(Scope.USAGE_WRITE, over_others=True))]
ApiKeysReader = Annotated[Principal, Depends(Needs(Scope.API_KEYS_READ))]
ApiKeysWriter = Annotated[Principal, Depends(Needs(Scope.API_KEYS_WRITE))]
ApiKeyCreator = Annotated[Principal, Depends(key_creator)]
ConversationsReader = Annotated[Principal, Depends(Needs(Scope.CONVERSATIONS_READ))]
UploadsReader = Annotated[Principal, Depends(Needs(Scope.UPLOADS_READ))]
UploadsWriter = Annotated[Principal, Depends(Needs(Scope.UPLOADS_WRITE))]
ConversationsWriter = Annotated[Principal, Depends(Needs(Scope.CONVERSATIONS_WRITE))]

ANONYMOUS_RATE: Final = Depends(_spend_anonymous)
CREDENTIALS_RATE: Final = Depends(_spend_credentials)

IfMatch = Annotated[frozenset[int] | None, Depends(if_match)]
Id = PydanticObjectId
Anchor = Annotated[AnchorQuery, Depends(QueryOf(AnchorQuery))]
AuditList = Annotated[AuditQuery, Depends(QueryOf(AuditQuery))]
AuditExport = Annotated[AuditExportQuery, Depends(QueryOf(AuditExportQuery))]
KeyAuditList = Annotated[KeyAuditQuery, Depends(QueryOf(KeyAuditQuery))]
KeysAuditList = Annotated[KeysAuditQuery, Depends(QueryOf(KeysAuditQuery))]
ApiKeyList = Annotated[ApiKeyQuery, Depends(QueryOf(ApiKeyQuery))]
ConversationList = Annotated[ConversationQuery, Depends(QueryOf(ConversationQuery))]
SessionList = Annotated[PageQuery, Depends(QueryOf(PageQuery))]
DeletedUserList = Annotated[DeletedUserQuery, Depends(QueryOf(DeletedUserQuery))]
ItemList = Annotated[ItemQuery, Depends(QueryOf(ItemQuery))]
MessageList = Annotated[MessageQuery, Depends(QueryOf(MessageQuery))]
UploadList = Annotated[UploadQuery, Depends(QueryOf(UploadQuery))]
MessageLogList = Annotated[MessageLogQuery, Depends(QueryOf(MessageLogQuery))]
UserList = Annotated[UserQuery, Depends(QueryOf(UserQuery))]
