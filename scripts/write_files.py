"""What the scripts share that write files from the code."""

import argparse
import sys
from pathlib import Path


def write_or_check(contents: dict[Path, str], description: str | None) -> None:
    """Write the files. With `--check` nothing is written: it fails when one is not what it would be."""
    if not _options(description).check:
        for path, content in contents.items():
            path.write_text(content)
            print(f"{path.name}: written")
    elif stale := [path.name for path, content in contents.items() if not _is_current(path, content)]:
        sys.exit(f"Not what the code says: {', '.join(stale)}. Run `python3 scripts/{Path(sys.argv[0]).name}`.")


def _is_current(path: Path, content: str) -> bool:
    return path.exists() and path.read_text() == content


def _options(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a file is not current")
    return parser.parse_args()
