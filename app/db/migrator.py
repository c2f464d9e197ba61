"""Bringing the database to the schema of the code, or back: one process at a time, from where the last one stopped."""

import asyncio
from typing import Any, Final, NamedTuple, Self

from beanie import init_beanie
from beanie.migrations.controllers.base import BaseMigrationController
from beanie.migrations.models import RunningDirections
from pymongo.asynchronous.database import AsyncDatabase

from app.core.clock import utc_now
from app.core.logging_config import get_logger
from app.db.lease import Lease, LeaseLostError
from app.db.migrations.all import MIGRATIONS
from app.db.migrations.steps import BatchedMigration, Migration

Raw = dict[str, Any]
Database = AsyncDatabase[Raw]

_FACT: Final = "schema"
_POLL_SECONDS: Final = 0.2
_log = get_logger(__name__)


class SchemaError(RuntimeError):
    """This code can't work on this database; the message says why and what to do."""


class Schema(NamedTuple):
    """What a database says of itself.

    `running` is the migration that was begun and has not ended, neither forward nor back: it follows those applied.
    """

    applied: list[Raw]
    running: Raw | None
    is_marked: bool
    is_held: bool

    @classmethod
    async def of(cls, database: Database) -> Self:
        row = await database["installation"].find_one({"_id": _FACT}) or {}
        is_held = "until" in row and row["until"] > utc_now()
        return cls(row.get("applied", []), row.get("running"), "applied" in row, is_held)

    @property
    def names(self) -> list[str]:
        """In the order in which they were begun."""
        return [row["name"] for row in self.applied] + ([self.running["name"]] if self.running else [])

    @property
    def surplus(self) -> list[Raw]:
        """What only a newer version knows."""
        return [*self.applied, *([self.running] if self.running else [])][len(MIGRATIONS) :]

    @property
    def is_current(self) -> bool:
        return self.is_marked and self.is_known and len(self.applied) >= len(MIGRATIONS)

    @property
    def is_known(self) -> bool:
        """Of what is not known, everything must be what this version can live with."""
        known = [migration.name for migration in MIGRATIONS[: len(self.names)]]
        return self.names[: len(known)] == known and all(row.get("is_additive") for row in self.surplus)


async def ensure_schema(database: Database, *, migrates: bool) -> None:
    """Return once the schema is that of the code, whoever brings it there; `SchemaError` when that can't be.

    A database in which there is nothing yet needs no migrations.
    """
    while not (schema := await Schema.of(database)).is_current:
        _require_known(schema)
        if not migrates and not await _is_fresh(database, schema):
            if await Schema.of(database) != schema:  # nothing was there, and another was faster
                continue
            raise SchemaError(
                f"The database has an older schema than this version of Octopus ({_lacking(schema)} not applied), and "
                "MIGRATE_ON_START is off. Run `python3 scripts/migrate.py up` first."
            )
        await migrate(database, len(MIGRATIONS))


async def migrate(database: Database, to: int) -> list[str]:
    """Go forward or back until so many migrations are applied. Says which ones this call has finished.

    Waits for who is at it; goes on where one has stopped that died.
    """
    while True:
        lease = Lease(database, _FACT)
        if not await lease.take():
            _log.info("migration_awaited")
            while not await lease.take():  # noqa: ASYNC110 - the holder may be on another host
                await asyncio.sleep(_POLL_SECONDS)
        try:
            return await lease.run(_go(database, lease, to))
        except LeaseLostError:
            continue


async def _go(database: Database, lease: Lease, to: int) -> list[str]:
    schema, finished = await Schema.of(database), list[str]()
    _require_known(schema)
    if not schema.is_marked:
        if await _is_fresh(database, schema):
            await lease.note({"applied": [_applied(migration) for migration in MIGRATIONS]})
            return []
        await lease.note({"applied": []})
    if schema.surplus:
        if to < len(schema.names):
            raise _newer(schema)
        return []
    while (next_one := _next(schema, to)) is not None:
        migration, direction = next_one
        await _run(database, lease, migration, direction, schema)
        finished.append(migration.name)
        schema = await Schema.of(database)
    return finished


def _next(schema: Schema, to: int) -> tuple[Migration, RunningDirections] | None:
    count = len(schema.applied)
    if count < to:
        return MIGRATIONS[count], RunningDirections.FORWARD
    if schema.running is not None:
        return MIGRATIONS[count], RunningDirections.BACKWARD
    return (MIGRATIONS[count - 1], RunningDirections.BACKWARD) if count > to else None


async def _run(
    database: Database, lease: Lease, migration: Migration, direction: RunningDirections, schema: Schema
) -> None:
    """From its begin, or from where it was cut off in the same direction."""
    is_forward = direction is RunningDirections.FORWARD
    rest = [row for row in schema.applied if row["name"] != migration.name]
    running = schema.running
    if running is None or running["direction"] != direction.value:
        running = {**_mark_of(migration), "direction": direction.value, "step": 0, "position": None}
        await lease.note({"applied": rest, "running": running})
    # What is dropped now is made anew by the version that starts next, be it this one or the one before.
    await database["installation"].update_one({"_id": "indexes"}, {"$unset": {"fingerprint": ""}})
    _log.info("migration_started", migration=migration.name, direction=direction.value, step=running["step"])
    steps = migration.forward if is_forward else migration.backward
    for at in range(running["step"], len(steps)):
        await _run_step(database, lease, steps[at], running)
        running = {**running, "step": at + 1, "position": None}
        await lease.note({"running": running})
    await lease.note({"running": None, "applied": [*rest, _applied(migration)] if is_forward else rest})
    _log.info("migration_finished", migration=migration.name, direction=direction.value)


async def _run_step(database: Database, lease: Lease, step: BaseMigrationController, running: Raw) -> None:
    await init_beanie(database, document_models=[*step.models], skip_indexes=True)
    if isinstance(step, BatchedMigration):
        async for position in step.batches(running["position"]):
            await lease.note({"running.position": position})
        return
    async with database.client.start_session() as session:
        await step.run(session)  # type: ignore[no-untyped-call]


async def _is_fresh(database: Database, schema: Schema) -> bool:
    """Whether nothing was ever made in it, but for the lease of who asks."""
    if schema.is_marked:
        return False
    names = {name for name in await database.list_collection_names() if not name.startswith("system.")}
    return names <= {"installation"}


def _require_known(schema: Schema) -> None:
    if not schema.is_known:
        raise _newer(schema)


def _newer(schema: Schema) -> SchemaError:
    known = {migration.name for migration in MIGRATIONS}
    strange = ", ".join(name for name in schema.names if name not in known) or ", ".join(schema.names)
    return SchemaError(
        f"The database is newer than this version of Octopus, which does not know its migrations: {strange}. "
        "Start the newer version, or go back with that one's `python3 scripts/migrate.py down`."
    )


def _lacking(schema: Schema) -> str:
    return ", ".join(migration.name for migration in MIGRATIONS[len(schema.applied) :])


def _mark_of(migration: Migration) -> Raw:
    return {"name": migration.name, "is_additive": migration.is_additive}


def _applied(migration: Migration) -> Raw:
    return {**_mark_of(migration), "at": utc_now()}
