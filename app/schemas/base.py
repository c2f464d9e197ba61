"""What every body has in common, and the kinds of text that are accepted."""

import unicodedata
from typing import Annotated, Any, ClassVar, Final, Self

from beanie import PydanticObjectId
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from app.core.search_words import words_of

_MOST_UNKNOWN: Final = 20
_MOST_WORDS: Final = 32
_LINE_BREAKS = "\n\r\t"


def _one_line(text: str) -> str:
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise ValueError("must not contain control characters")
    return text


def _many_lines(text: str) -> str:
    if any(unicodedata.category(character) == "Cc" and character not in _LINE_BREAKS for character in text):
        raise ValueError("must not contain control characters other than line breaks and tabs")
    return text


def _with_words(text: str) -> str:
    words = words_of(text)
    if not words:
        raise ValueError("must have a word to search for")
    if len(words) > _MOST_WORDS:  # each is looked up for itself, in all messages
        raise ValueError(f"must have at most {_MOST_WORDS} different words")
    return text


def _not_null(value: object) -> object:
    """Of nothing, `PydanticObjectId` would make a new id."""
    if value is None:
        raise ValueError("must be an id")
    return value


ResourceId = Annotated[PydanticObjectId, BeforeValidator(_not_null)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), AfterValidator(_one_line)]
Description = Annotated[str, StringConstraints(strip_whitespace=True, max_length=2000), AfterValidator(_many_lines)]
Content = Annotated[str, StringConstraints(min_length=1, max_length=32_000), AfterValidator(_many_lines)]
SearchText = Annotated[str, StringConstraints(max_length=320), AfterValidator(_one_line)]
SearchWords = Annotated[SearchText, AfterValidator(_with_words)]
Line = Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_one_line)]


class RequestBody(BaseModel):
    """What a client sends. A field we do not know is a mistake, not a wish."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_a_flood(cls, value: Any) -> Any:
        """Telling of each of a hundred thousand fields would keep everybody else waiting for seconds."""
        if isinstance(value, dict) and len(value) > len(cls.model_fields) + _MOST_UNKNOWN:
            raise PydanticCustomError("extra_forbidden", "There are far more fields than are known here")
        return value


class PatchBody(RequestBody):
    """Some fields of a resource: what is left out stays. `null` empties a field, where it can be empty."""

    clearable: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="after")
    def _refuse_null(self) -> Self:
        for name in self.model_fields_set - self.clearable:
            if getattr(self, name) is None:
                raise ValueError(f"`{name}` must not be null")
        return self


class ResponseBody(BaseModel):
    """What a client receives. Built from documents by attribute; fields are listed one by one."""

    model_config = ConfigDict(from_attributes=True)


class ResourceRead(ResponseBody):
    id: PydanticObjectId
