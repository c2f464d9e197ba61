"""`python -m tests.patient_service`: the service, with as much patience for Redis as a busy machine needs.

A check that takes longer than a tenth of a second is made in memory, so that nobody waits: then two processes let
more through than one. Its workers load this module too, as multiprocessing has it.
"""

from app.__main__ import main
from app.core import shared_rate_limit

__all__ = ["main"]

shared_rate_limit._PATIENCE = 30.0  # type: ignore[misc]

if __name__ == "__main__":
    main()
