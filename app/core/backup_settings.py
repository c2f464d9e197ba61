"""The settings of backups."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

from app.core import encryption


class BackupSettings(BaseModel):
    backup_dir: Path | None = Field(None, description="Where backups are; without it in DATA_DIR/backups")
    backup_key: SecretStr | None = Field(
        None,
        description="Encrypts backups; 32 bytes in base64, as generate_secrets.py prints. Keep it elsewhere as well",
    )
    backup_key_file: Path | None = Field(None, description="The same, in a file")
    azure_backup_container: str = Field(
        "backups",
        max_length=63,
        pattern="^[a-z0-9](-?[a-z0-9]){2,62}$",
        description="Container of backups in the storage account of uploads, made when it is missing; private",
    )

    @field_validator("backup_key")
    @classmethod
    def _is_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not encryption.is_key(value.get_secret_value()):
            raise ValueError("BACKUP_KEY is not 32 bytes in base64; generate_secrets.py prints one")
        return value

    @model_validator(mode="after")
    def _has_one_key(self) -> Self:
        if self.backup_key is not None and self.backup_key_file is not None:
            raise ValueError("BACKUP_KEY and BACKUP_KEY_FILE are both set; one of them is the key")
        return self
