from datetime import datetime

from beanie import PydanticObjectId
from pymongo import ASCENDING, IndexModel

from app.models.base import BaseDocument


class CreditHold(BaseDocument):
    """Credits that a reply under way may cost, taken from the account already.

    Whoever removes the document gives back what was not used. So nothing expires by itself here.
    """

    user_id: PydanticObjectId
    amount: int
    expires_at: datetime

    class Settings:
        name = "credit_holds"
        indexes = [  # noqa: RUF012
            IndexModel([("user_id", ASCENDING), ("_id", ASCENDING)], name="user_oldest"),
            IndexModel([("expires_at", ASCENDING)], name="expired_first"),
        ]
