from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class FieldProblem(BaseModel):
    loc: list[str | int]
    msg: str
    type: str


class Problem(BaseModel):
    """The body of every error (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:octopus:problem:not_found",
                "title": "Not Found",
                "status": 404,
                "detail": "There is no such resource.",
                "instance": "/api/v1/users/6746d0a8f8f8f8f8f8f8f8f8",
                "code": "not_found",
                "request_id": "01JD2X6M7V",
            }
        }
    )

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str | None
    errors: list[FieldProblem] | None = None
    error: Annotated[str | None, Field(description="At `/auth/token`: the code of RFC 6749, section 5.2")] = None
    error_description: Annotated[str | None, Field(description="At `/auth/token`: the same for a developer")] = None
