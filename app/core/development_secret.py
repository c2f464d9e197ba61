"""The secret of a development machine, made once and kept, so that tokens survive a restart."""

import os
import secrets
from pathlib import Path


def development_secret(data_dir: Path) -> bytes:
    """Read the generated secret, making it on first use.

    Safe when several workers start at once: a finished file is linked into place, and the first one wins.
    """
    path = data_dir / "secret_key"
    if not path.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        draft = data_dir / f"secret_key.{os.getpid()}.{secrets.token_hex(4)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # another process was first: its secret is the one
        finally:
            draft.unlink()
    return path.read_bytes().strip()
