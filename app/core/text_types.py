"""Of which files there are parts: what is shown of them, and made of them (app/core/document_work.py)."""

from typing import Final

TEXT_TYPES: Final = frozenset(
    {"application/pdf", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"}
    | {"text/plain", "text/markdown", "text/csv"}
)
MOST_BYTES: Final = 50_000_000  # of a file of which parts are made
