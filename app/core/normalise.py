"""The forms under which names are unique and found: without case, in one Unicode form."""

import unicodedata


def name_key(text: str) -> str:
    """NFC and case-folded, so that `Ada` and `ada` are one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
