"""What a test makes the application ask of the database."""

import asyncio
from typing import Any, NamedTuple

from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

_OF_THE_DRIVER = {"lsid", "txnNumber"}


class Command(NamedTuple):
    """A command, where it goes, and the nesting of its names without their values: what an outsider could time."""

    name: str
    collection: Any
    shape: Any


class Commands(CommandListener):
    """What is sent from the task of the test, requests included: what runs in the background is not its doing."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._sent: list[Command] = []

    def taken(self) -> list[Command]:
        """What was sent since the last call. The first call begins it."""
        self._task = asyncio.current_task()
        sent, self._sent = self._sent, []
        return sent

    def started(self, event: CommandStartedEvent) -> None:
        if self._task is not None and asyncio.current_task() is self._task:
            told = {name: part for name, part in event.command.items() if name[0] != "$" and name not in _OF_THE_DRIVER}
            self._sent.append(Command(event.command_name, told[event.command_name], _shape(told)))

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass


def _shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shape(part) for name, part in value.items()}
    return [_shape(part) for part in value] if isinstance(value, list) else None
