"""Bring the database to the schema of this version, or back: `python3 scripts/migrate.py status|up|down [--to N]`.

`status` changes nothing. `up` applies what is missing, or up to migration N. `down` takes back the last one, or all
behind N; 0 takes back all. Of several calls one works and the others wait; the next one goes on where one
was cut off. Before `down`, stop the service or set MIGRATE_ON_START=false: a start would go up again.
"""

import argparse
import sys
from typing import TYPE_CHECKING

import environment

if TYPE_CHECKING:
    from app.db.migrator import Schema


def main() -> None:
    environment.enter()
    import service  # noqa: PLC0415 - importable only inside the environment

    options = _options()
    work = _status() if options.command == "status" else _move(options.to, is_up=options.command == "up")
    service.run(work, is_connected=False)


async def _status() -> None:
    from app.core.config import get_settings  # noqa: PLC0415
    from app.db.migrations.all import MIGRATIONS  # noqa: PLC0415
    from app.db.migrator import Schema  # noqa: PLC0415
    from app.db.startup import open_as_it_is  # noqa: PLC0415

    async with open_as_it_is(get_settings()) as database:
        schema = await Schema.of(database)
    for row in schema.applied:
        print(f"{row['name']}: applied {row['at']:%Y-%m-%d %H:%M} UTC")
    if schema.running is not None:
        print(f"{schema.running['name']}: {_progress(schema)}")
    for migration in MIGRATIONS:
        if migration.name not in schema.names:
            print(f"{migration.name}: not applied")
    print(f"The database {database.name} {_verdict(schema)}")


async def _move(to: int | None, *, is_up: bool) -> None:
    from app.core.config import get_settings  # noqa: PLC0415
    from app.db.migrations.all import MIGRATIONS  # noqa: PLC0415
    from app.db.migrator import Schema, migrate  # noqa: PLC0415
    from app.db.schema import ensure_indexes  # noqa: PLC0415
    from app.db.startup import open_as_it_is  # noqa: PLC0415

    async with open_as_it_is(get_settings()) as database:
        schema = await Schema.of(database)
        highest, count = max(len(MIGRATIONS), len(schema.names)), len(schema.applied)
        goal = to if to is not None else highest if is_up else _one_back(schema)
        if not (count <= goal <= highest if is_up else 0 <= goal <= count):
            sys.exit(f"{count} of {len(MIGRATIONS)} migrations are applied: there is no way from there to {goal}.")
        finished = await migrate(database, goal)
        if is_up and goal >= len(MIGRATIONS):
            await ensure_indexes(database)
    print(f"{'Applied' if is_up else 'Taken back'}: {', '.join(finished) or 'nothing'}.")


def _one_back(schema: "Schema") -> int:
    """What was begun and has not ended is the last one."""
    count = len(schema.applied)
    return count if schema.running is not None else max(count - 1, 0)


def _progress(schema: "Schema") -> str:
    running = schema.running or {}
    state = "under way" if schema.is_held else "cut off"
    return f"{running['direction'].lower()} {state}, at step {running['step'] + 1}"


def _verdict(schema: "Schema") -> str:
    if schema.is_current:
        return "is up to date."
    if not schema.is_known:
        return "is newer than this version of Octopus."
    return "is older than this version, or empty." if not schema.is_marked else "is older than this version."


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["status", "up", "down"])
    parser.add_argument("--to", type=int, metavar="N", help="how many migrations are applied in the end")
    return parser.parse_args()


if __name__ == "__main__":
    main()
