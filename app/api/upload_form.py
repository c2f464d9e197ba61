"""The form by which a file is uploaded."""

from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any, ClassVar, Final

from fastapi import Request
from pydantic import ValidationError

from app.api.multipart import FORM_TYPE, StreamedForm
from app.core.exceptions import InvalidContentError
from app.models.enums import Visibility
from app.schemas.upload import UploadCreate

# For the OpenAPI document: the endpoint reads the body itself, so nothing can be derived.
_PROPERTIES: Final[Mapping[str, Any]] = {
    "file": {"type": "string", "contentMediaType": "application/octet-stream", "description": "The file"},
    "visibility": {
        "type": "string",
        "enum": [visibility.value for visibility in Visibility],
        "default": Visibility.PRIVATE.value,
        "description": "Public: whoever has its id may read it",
    },
    "conversation_id": {
        "type": "string",
        "description": "Whoever takes part in this conversation may read it; it goes with the conversation",
    },
}
UPLOAD_FORM: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            FORM_TYPE: {"schema": {"type": "object", "properties": dict(_PROPERTIES), "required": ["file"]}},
        },
    }
}


class UploadForm:
    """What somebody sends, up to the bytes of the file."""

    NAMES: ClassVar[Collection[str]] = UploadCreate.model_fields

    def __init__(self, form: StreamedForm) -> None:
        self._form = form

    @classmethod
    async def begin(cls, request: Request) -> "UploadForm":
        form = StreamedForm(request, names=cls.NAMES)
        await form.begin()
        return cls(form)

    @property
    def filename(self) -> str:
        return self._form.filename

    @property
    def most_bytes(self) -> int | None:
        return self._form.most_bytes

    def said(self) -> UploadCreate:
        try:
            return UploadCreate.model_validate(self._form.fields)
        except ValidationError as error:
            issues = [
                {"loc": ["body", *issue["loc"]], "msg": issue["msg"], "type": issue["type"]} for issue in error.errors()
            ]
            raise InvalidContentError(errors=issues) from error

    def chunks(self) -> AsyncIterator[bytes]:
        return self._form.chunks()
