"""Which requests have a body that is read as it arrives, and nowhere kept as a whole."""

import re
from typing import Final

from starlette.types import Scope

MAX_FORM_BYTES: Final = 64 * 1024  # of a form, besides its file
_STREAMED: Final = re.compile("POST /api/v1/uploads|PUT /api/v1/uploads/[^/]+/bytes")


def is_streamed(scope: Scope) -> bool:
    return _STREAMED.fullmatch(f"{scope['method']} {scope['path'].rstrip('/')}") is not None
