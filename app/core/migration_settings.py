"""The setting of migrations."""

from pydantic import BaseModel, Field


class MigrationSettings(BaseModel):
    migrate_on_start: bool = Field(
        default=True,
        description="Bring an older database up to date at the start; else that is refused until "
        "`python3 scripts/migrate.py up` has run",
    )
