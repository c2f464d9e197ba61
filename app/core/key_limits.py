"""What limits an API key besides its scopes, and that no key gives another more than it has itself."""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from operator import le
from typing import Any, Final

from app.core.exceptions import ForbiddenError
from app.core.network import are_within
from app.core.principal import Principal
from app.core.quota import Quota
from app.core.rate_limit import is_at_most

# Whether the first, which is there, is within the second.
_IS_WITHIN: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "allowed_ips": are_within,
    "expires_at": le,
    "rate_limit": is_at_most,
    "quota": lambda quota, own: Quota.model_validate(quota).is_within(own),
}
LIMITS: Final[AbstractSet[str]] = _IS_WITHIN.keys()


def inherited(by: Principal, *, given: AbstractSet[str]) -> dict[str, Any]:
    """The limits of the key in use, except for those that its user names."""
    return {name: own for name in LIMITS - given if (own := getattr(by, name))}


def require_within(limits: Mapping[str, Any], *, by: Principal) -> None:
    """Refuse limits that are wider than those of the key in use, or none where it has one."""
    for name, is_within in _IS_WITHIN.items():
        own = getattr(by, name)
        if name in limits and own and not (limits[name] and is_within(limits[name], own)):
            raise ForbiddenError(f"`{name}` can't exceed that of the key you are using.")
