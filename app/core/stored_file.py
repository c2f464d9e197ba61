"""A file as it goes out, whatever it is made of: what the headers of the answer need to know."""

from datetime import datetime
from typing import NamedTuple


class StoredFile(NamedTuple):
    """What `key` in the storage holds. It never changes, so the tag is a strong one."""

    key: str
    size: int
    tag: str
    modified_at: datetime
    content_type: str
    disposition: str
    is_public: bool
    is_harmless: bool  # even where none of our headers go with it
