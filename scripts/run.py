"""Start Octopus: `python3 scripts/run.py [--host H] [--port P] [--workers N]`.

On first use it makes `.venv` and installs the requirements. The database is started along, unless
`DATABASE_URL` names one.
"""

import os
import sys

import environment


def main() -> None:
    os.chdir(environment.ROOT)
    environment.enter()
    os.execv(sys.executable, [sys.executable, "-m", "app", "--welcome", *sys.argv[1:]])  # noqa: S606


if __name__ == "__main__":
    main()
