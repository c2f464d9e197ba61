"""Which requests have a body that is read as it arrives, and nowhere kept as a whole."""

from typing import Final

from starlette.types import Scope

_STREAMED: Final = frozenset({("POST", "/api/v1/uploads")})


def is_streamed(scope: Scope) -> bool:
    return (scope["method"], scope["path"].rstrip("/")) in _STREAMED
