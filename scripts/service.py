"""What scripts share that work on the database of the service, also while it runs."""

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path

from pydantic import ValidationError
from pymongo.errors import PyMongoError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.core.config import Settings, faults_of, use_settings
from app.core.exceptions import AppError
from app.core.logging_config import configure_logging
from app.db.embedded import EmbeddedServerError
from app.db.migrator import SchemaError
from app.db.preflight import fault_of_url
from app.db.startup import open_database


def run(work: Coroutine[None, None, None], *, is_connected: bool = True) -> None:
    """Run the work, on the connected database unless it connects itself.

    What the operator can mend is one sentence, not a trace.
    """
    try:
        settings = Settings()
        use_settings(settings)
        configure_logging("WARNING")
        if not settings.is_embedded and (fault := fault_of_url(settings.database_url.get_secret_value())):
            sys.exit(fault)
        asyncio.run(_connected(settings, work) if is_connected else work)
    except ValidationError as error:
        sys.exit(faults_of(error))
    except (AppError, EmbeddedServerError, SchemaError) as error:
        sys.exit(str(error))
    except PyMongoError as error:
        sys.exit(f"The database does not answer: {error}")
    finally:
        work.close()


async def _connected(settings: Settings, work: Coroutine[None, None, None]) -> None:
    async with open_database(settings):
        await work
