from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.schemas.api_key import Moment
from app.schemas.base import ResponseBody


class Bucket(StrEnum):
    HOUR = "hour"
    DAY = "day"


class KeyUsageQuery(BaseModel):
    model_config = ConfigDict(frozen=True)

    begin: Annotated[
        Moment | None, Field(alias="from", description="The beginning; else a day, or 30, before `to`")
    ] = None
    end: Annotated[Moment | None, Field(alias="to", description="The end, which is not part of it; else now")] = None
    bucket: Annotated[Bucket, Field(description="At most 31 days by hour, 400 by day")] = Bucket.HOUR


class KeyUsageRead(ResponseBody):
    """What was asked in the hour or day that begins then (UTC). `denied` of it was answered 401, 403 or 429."""

    start: datetime
    requests: int
    denied: int
