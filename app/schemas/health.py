from typing import Literal

from app.schemas.base import ResponseBody


class Welcome(ResponseBody):
    name: str
    version: str
    docs: str
    openapi: str
    health: str


class Live(ResponseBody):
    status: Literal["alive"]


class Health(ResponseBody):
    status: Literal["healthy", "unhealthy"]
    version: str
    checks: dict[str, Literal["ok", "unavailable", "stopping"]]
