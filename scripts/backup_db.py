"""Back the database up, and get it back: `python3 scripts/backup_db.py --help`."""

import sys
from pathlib import Path

import environment

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    environment.enter()
    from app.backup.__main__ import main as run  # noqa: PLC0415 - importable only inside the environment

    run()


if __name__ == "__main__":
    main()
