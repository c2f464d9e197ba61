"""`python -m tests.patient_service`: the service, with as much patience for Redis as a busy machine needs.

The service itself gives Redis a tenth of a second and then counts in its own memory, where two processes together let
more through. With `WORKERS` above 1 each worker loads this module again, as its main module, and so is patient too.
"""

from app.__main__ import main
from app.core import shared_rate_limit

__all__ = ["main"]

shared_rate_limit._PATIENCE = shared_rate_limit._CONNECTING = 30.0  # type: ignore[misc]

if __name__ == "__main__":
    main()
