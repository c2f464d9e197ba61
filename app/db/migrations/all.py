"""Which migrations there are, in their order. One that was released is never changed, nor taken out."""

from typing import Final

from app.db.migrations import m0001_place_messages
from app.db.migrations.steps import Migration, migration_of

MIGRATIONS: Final[tuple[Migration, ...]] = tuple(migration_of(module) for module in (m0001_place_messages,))
