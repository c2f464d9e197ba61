from datetime import datetime

from beanie import PydanticObjectId
from pymongo import ASCENDING, DESCENDING, IndexModel

from app.models.base import BaseDocument


class MessageLog(BaseDocument):
    """Messages that a user exchanged with a model somewhere else, as a service has told of them.

    The name is the one that the user had when it was logged.
    """

    user_id: PydanticObjectId
    username: str
    username_key: str
    model: str
    messages: int
    tokens: int | None = None  # none when they are unknown
    timestamp: datetime

    class Settings:
        name = "message_logs"
        indexes = [  # noqa: RUF012
            IndexModel([("timestamp", DESCENDING), ("_id", DESCENDING)], name="latest"),
            *(
                IndexModel([(field, ASCENDING), ("timestamp", DESCENDING), ("_id", DESCENDING)], name=f"{name}_latest")
                for field, name in (("user_id", "user"), ("username_key", "username"), ("model", "model"))
            ),
        ]
