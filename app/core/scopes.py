"""The permission vocabulary, as data: what may be asked for, what each scope and each role holds.

A scope in the sense of a key or an endpoint is `resource:action`. `read`, `write`, `admin` and
`<resource>:*` are names for several of them at once. What a principal may do is two sets of scopes:
those it holds over its own resources, and those it holds over everybody's.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Scope(StrEnum):
    """`resource:action`, and `admin` for what only an administrator does, such as managing service keys."""

    ADMIN = "admin"
    API_KEYS_READ = "api_keys:read"
    API_KEYS_WRITE = "api_keys:write"
    AUDIT_READ = "audit:read"
    CONVERSATIONS_READ = "conversations:read"
    CONVERSATIONS_WRITE = "conversations:write"
    ITEMS_READ = "items:read"
    ITEMS_WRITE = "items:write"
    STAFF_VIEW = "staff:view"
    STAFF_ASSIST = "staff:assist"
    STAFF_MANAGE = "staff:manage"
    TOKENS_INTROSPECT = "tokens:introspect"
    UPLOADS_READ = "uploads:read"
    UPLOADS_WRITE = "uploads:write"
    USAGE_WRITE = "usage:write"
    USERS_READ = "users:read"
    USERS_WRITE = "users:write"


class Role(StrEnum):
    """Who a user is to the service, from the least to the most powerful."""

    GUEST = "guest"
    USER = "user"
    SUPPORT = "support"
    ADMIN = "admin"
    SUPERUSER = "superuser"

    @property
    def rank(self) -> int:
        """Position in the order of power; one acts on the accounts of lower rank."""
        return _RANKS[self]


_RANKS: Final = {role: rank for rank, role in enumerate(Role)}

Scopes = frozenset[Scope]

ALL: Final[Scopes] = frozenset(Scope)
READ: Final[Scopes] = frozenset({Scope.USERS_READ, Scope.CONVERSATIONS_READ, Scope.ITEMS_READ, Scope.UPLOADS_READ})
WRITE: Final[Scopes] = frozenset({Scope.USERS_WRITE, Scope.CONVERSATIONS_WRITE, Scope.ITEMS_WRITE, Scope.UPLOADS_WRITE})

# What staff of each level may do to the accounts of others: look; limits, activity, sessions; plan, credits, restore.
_STAFF_OF_LEVEL: Final[dict[int, Scopes]] = {
    1: frozenset({Scope.STAFF_VIEW}),
    2: frozenset({Scope.STAFF_VIEW, Scope.STAFF_ASSIST}),
    3: frozenset({Scope.STAFF_VIEW, Scope.STAFF_ASSIST, Scope.STAFF_MANAGE}),
}
LOWEST_STAFF_LEVEL: Final = min(_STAFF_OF_LEVEL)
HIGHEST_STAFF_LEVEL: Final = max(_STAFF_OF_LEVEL)

# What a key may be given, and what it means. `read` and `write` leave out keys, audit, usage and tokens:
# a key for everyday data must not turn out to manage credentials. Staff acts in person, so its scopes have no names.
SCOPES_OF_NAME: Final[dict[str, Scopes]] = {
    **{scope.value: frozenset({scope}) for scope in Scope if scope not in _STAFF_OF_LEVEL[HIGHEST_STAFF_LEVEL]},
    **{
        f"{resource}:*": frozenset({Scope(f"{resource}:read"), Scope(f"{resource}:write")})
        for resource in ("api_keys", "conversations", "items", "uploads", "users")
    },
    "read": READ,
    "write": WRITE,
    "admin": ALL,
}


@dataclass(frozen=True, slots=True)
class Grant:
    """What a principal may do to what it owns, and to what others own."""

    own: Scopes
    others: Scopes

    def limited_to(self, scopes: Scopes) -> "Grant":
        return Grant(own=self.own & scopes, others=self.others & scopes)


NO_GRANT: Final = Grant(own=frozenset(), others=frozenset())
_OWNER: Final[Scopes] = READ | WRITE | {Scope.API_KEYS_READ, Scope.API_KEYS_WRITE}

_GRANT_OF_ROLE: Final[dict[Role, Grant]] = {
    Role.GUEST: Grant(own=READ, others=frozenset()),
    Role.USER: Grant(own=_OWNER, others=frozenset()),
    Role.SUPPORT: Grant(own=_OWNER, others=frozenset({Scope.USERS_READ})),
    Role.ADMIN: Grant(own=ALL, others=ALL),
    Role.SUPERUSER: Grant(own=ALL, others=ALL),
}


def grant_of(role: Role, staff_level: int | None = None) -> Grant:
    """What a user of the role holds; support staff by its level, the lowest when it has none."""
    grant = _GRANT_OF_ROLE[role]
    if role is not Role.SUPPORT:
        return grant
    return Grant(own=grant.own, others=grant.others | _STAFF_OF_LEVEL[staff_level or LOWEST_STAFF_LEVEL])


def expand(names: Iterable[str]) -> Scopes:
    """Every scope that the names stand for. A name outside the vocabulary is a `KeyError`."""
    return frozenset().union(*(SCOPES_OF_NAME[name] for name in names))
