"""What migrations are made of: classes `Forward` and `Backward` as Beanie wants them, with steps in their order."""

from collections.abc import AsyncIterator, Awaitable, Callable
from types import ModuleType
from typing import Any, NamedTuple

from beanie import Document, free_fall_migration
from beanie.migrations.controllers.base import BaseMigrationController
from pymongo.asynchronous.client_session import AsyncClientSession

Position = dict[str, Any]
AtOnce = Callable[[Any, AsyncClientSession], Awaitable[None]]
Batches = Callable[[Any, Position | None], AsyncIterator[Position]]


class BatchedMigration(BaseMigrationController):
    """A step that goes on from a position, and gives the position behind each batch that it has written.

    Beanie's iterative migration reads a whole collection before it writes, and knows no place to go on from.
    """

    def __init__(self, function: Batches, models: list[type[Document]]) -> None:
        self.function, self._models = function, models

    @property
    def models(self) -> list[type[Document]]:
        return self._models

    def batches(self, position: Position | None) -> AsyncIterator[Position]:
        found: AsyncIterator[Position] = self.function(None, position)
        return found

    async def run(self, session: AsyncClientSession) -> None:  # noqa: ARG002 - as Beanie calls it
        async for _ in self.batches(None):
            pass


class Migration(NamedTuple):
    """One change of the schema and its reverse. Every step may be run again, from its beginning too.

    The version before can live with what an additive one makes, and may start on it.
    """

    name: str
    is_additive: bool
    forward: list[BaseMigrationController]
    backward: list[BaseMigrationController]


def at_once(*models: type[Document]) -> Callable[[AtOnce], BaseMigrationController]:
    """A step whose length does not grow with the data."""
    controller: Callable[[AtOnce], BaseMigrationController] = free_fall_migration(list(models))
    return controller


def in_batches(*models: type[Document]) -> Callable[[Batches], BaseMigrationController]:
    """A step that goes through data, in a memory that does not grow with it."""
    return lambda function: BatchedMigration(function, list(models))


def migration_of(module: ModuleType) -> Migration:
    """`m0001_place_messages` is known to databases as `0001_place_messages`."""
    name = module.__name__.rpartition(".")[2].removeprefix("m")
    is_additive = getattr(module, "IS_ADDITIVE", False)
    return Migration(name, is_additive, _steps(module.Forward), _steps(module.Backward))


def _steps(direction: type) -> list[BaseMigrationController]:
    """As they are written: Beanie's runner goes by their names."""
    return [step for step in vars(direction).values() if isinstance(step, BaseMigrationController)]
