"""The chat-completions protocol of OpenAI as bytes and values: nothing here knows a connection."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple

import orjson
from pydantic import BaseModel, Field, ValidationError

_DONE: Final = "[DONE]"
_BYTES_PER_TOKEN: Final = 4
_TOKENS_AROUND_MESSAGE: Final = 4
_LONGEST_MODEL_NAME: Final = 200
_MOST_TOKENS: Final = 10**8


class ProtocolError(ValueError):
    """What came is not what the protocol says."""


class Turn(NamedTuple):
    """One message of the conversation as the model gets it."""

    role: str
    content: str


class Usage(BaseModel):
    prompt_tokens: Annotated[int, Field(ge=0, le=_MOST_TOKENS)]
    completion_tokens: Annotated[int, Field(ge=0, le=_MOST_TOKENS)]


class _Delta(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(BaseModel):
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: Any = None


class ReplyReader:
    """Takes what the events of one answer say, and knows when it is whole."""

    def __init__(self) -> None:
        self.model: str | None = None
        self.usage: Usage | None = None
        self.is_done = False
        self._has_reason = False

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing if nothing more comes: not all servers say that they are done."""
        return self.is_done or self._has_reason

    def read(self, data: str) -> str:
        """The text that an event adds. An error that it reports is a `ProtocolError` too."""
        if data.strip() == _DONE:
            self.is_done = True
            return ""
        try:
            chunk = _Chunk.model_validate_json(data)
        except ValidationError as error:
            raise ProtocolError("an event is no chunk of a completion") from error
        if chunk.error is not None:
            raise ProtocolError("an error was reported inside of the stream")
        if chunk.usage is not None:
            self.usage = chunk.usage
        if chunk.model and len(chunk.model) <= _LONGEST_MODEL_NAME:
            self.model = chunk.model
        return "".join(self._text_of(choice) for choice in chunk.choices or () if choice.index == 0)

    def _text_of(self, choice: _Choice) -> str:
        if choice.finish_reason is not None:
            self._has_reason = True
        return (choice.delta and choice.delta.content) or ""


def request_body(model: str, turns: Sequence[Turn], limit: Mapping[str, int]) -> bytes:
    """`limit` is the most tokens of the answer, under the name that the provider has for it."""
    return orjson.dumps(
        {
            "model": model,
            "messages": [turn._asdict() for turn in turns],
            "stream": True,
            "stream_options": {"include_usage": True},
            **limit,
        }
    )


def estimated_tokens(text: str) -> int:
    """About what a model counts: a token for every four bytes."""
    return math.ceil(len(text.encode(errors="replace")) / _BYTES_PER_TOKEN)


def estimated_prompt_tokens(turns: Sequence[Turn]) -> int:
    return sum(estimated_tokens(turn.content) + _TOKENS_AROUND_MESSAGE for turn in turns)
