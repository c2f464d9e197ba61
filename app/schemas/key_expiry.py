from typing import Annotated

from pydantic import Field

from app.schemas.base import ResponseBody
from app.schemas.page import PageQuery


class ExpiringQuery(PageQuery):
    days: Annotated[int, Field(ge=1, le=365, description="How far to look ahead")] = 7


class KeysDeactivated(ResponseBody):
    deactivated_count: int
    message: str
