from typing import Final

from beanie import Document
from pydantic import BaseModel

from app.core.hash_chain import Link

CHAIN: Final = "chain"


class AuditPlace(BaseModel):
    seq: int
    hash: str


class AuditChain(Document):
    """Where the chain of audit events ends, and where it begins: one document.

    `seq` and `hash` are those of the last event; `begins_after` holds those of the event before the first that is kept.
    """

    id: str = CHAIN  # type: ignore[assignment]  # there is one
    seq: int
    hash: str
    begins_after: AuditPlace

    @property
    def last(self) -> Link:
        return Link(self.seq, self.hash)

    @property
    def beginning(self) -> Link:
        return Link(self.begins_after.seq, self.begins_after.hash)

    class Settings:
        name = "audit_chain"
