from datetime import datetime

from beanie import Document, PydanticObjectId
from pymongo import ASCENDING, IndexModel

from app.models.enums import IdempotencyState


class IdempotencyRecord(Document):
    """One request that must not be carried out twice, and the answer it got.

    `holder` is whoever carries it out, which nobody else may until `until`.
    """

    id: bytes  # type: ignore[assignment]  # a digest of the caller and its key
    fingerprint: bytes  # a keyed hash of the request: its body may hold a password
    holder: PydanticObjectId
    state: IdempotencyState = IdempotencyState.RUNNING
    until: datetime
    answer: bytes | None = None  # encrypted: it may hold a new API key
    expires_at: datetime

    class Settings:
        name = "idempotency_records"
        indexes = [  # noqa: RUF012
            IndexModel([("expires_at", ASCENDING)], name="expired", expireAfterSeconds=0),
        ]
