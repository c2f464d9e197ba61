"""Which bytes of a file a request asks for (RFC 9110, section 14)."""

import re
from typing import Final, NamedTuple

from app.core.exceptions import RangeNotSatisfiableError

_UNIT: Final = "bytes="
_ONE: Final = re.compile(r"[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.ASCII)
_MOST_DIGITS: Final = 18


class ByteRange(NamedTuple):
    """From `first` to `last`, both included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first + 1


def wanted_range(header: str | None, size: int) -> ByteRange | None:
    """The range that the header asks for, cut to what there is; None when the answer is the whole file.

    That is the answer to several ranges too, and to what makes no sense: a server may ignore the header.
    `RangeNotSatisfiableError` when there is nothing at all in the range.
    """
    if header is None or not header.lower().startswith(_UNIT):
        return None
    found = _ONE.fullmatch(header, len(_UNIT))
    if found is None or not any(found.groups()):
        return None
    first, last = (_number(digits) for digits in found.groups())
    if first is None:
        wanted = ByteRange(max(0, size - (last or 0)), size - 1)
    elif last is not None and last < first:
        return None
    else:
        wanted = ByteRange(first, size - 1 if last is None else min(last, size - 1))
    if wanted.size <= 0:
        raise RangeNotSatisfiableError(size)
    return wanted


def _number(digits: str) -> int | None:
    """More digits than any file has are as good as the largest of so many."""
    return int(digits) if 0 < len(digits) <= _MOST_DIGITS else 10**_MOST_DIGITS if digits else None
