from app.schemas.base import ResponseBody


class Bootstrapped(ResponseBody):
    """`api_key` is shown this once; it is null when `MASTER_API_KEY` set it."""

    message: str
    api_key: str | None
    name: str
    scopes: list[str]
    instructions: str
