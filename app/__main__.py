"""`python -m app`: serve the API. Options override the settings of the same name."""

import argparse
import asyncio
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn
from pydantic import ValidationError
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from app.core.config import Settings, faults_of
from app.core.logging_config import configure_logging
from app.db.embedded import EmbeddedServerError, embedded_server
from app.db.preflight import fault_of_database


def main() -> None:
    options = _options()
    # For the workers, which are new processes and read the settings themselves.
    given = {"HOST": options.host, "PORT": options.port, "WORKERS": options.workers}
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    try:
        settings = Settings()
    except ValidationError as error:
        sys.exit(faults_of(error))
    if options.welcome:
        threading.Thread(target=_welcome, args=(settings,), daemon=True).start()
    with ExitStack() as stack:
        # Half of the start is loading what is needed, half waiting for the database: at the same time.
        needed = "app.main" if settings.workers == 1 else "app.db.startup"
        threading.Thread(target=import_module, args=(needed,), daemon=True).start()
        if settings.is_embedded:
            _start_database(settings, stack)
        elif fault := fault_of_database(settings.database_url.get_secret_value()):
            sys.exit(fault)  # here, because workers would start again and again
        if settings.workers > 1:
            _prepare_database(settings)
            if settings.metrics_dir is None:
                # One of its own for each start: what was counted before it counts no more.
                os.environ["METRICS_DIR"] = stack.enter_context(TemporaryDirectory(prefix="octopus-metrics-"))
        _serve(settings, reload=options.reload)


def _start_database(settings: Settings, stack: ExitStack) -> None:
    """Start or join the embedded server, or end with the paragraph that says what is missing."""
    try:
        stack.enter_context(embedded_server(settings.data_dir, settings.mongod_path))
    except EmbeddedServerError as error:
        sys.exit(str(error))


def _prepare_database(settings: Settings) -> None:
    """Migrate before there are workers, or end with the sentence that says why that can't be."""
    configure_logging("DEBUG" if settings.debug else settings.log_level)
    startup = import_module("app.db.startup")  # which the thread is loading
    if reason := asyncio.run(startup.prepare_database(settings)):
        sys.exit(reason)


class _Supervisor(Multiprocess):
    """uvicorn's, which would hold the port until the last worker has ended: who connects meanwhile would wait."""

    def terminate_all(self) -> None:
        for listening in self.sockets:
            listening.close()  # the workers have it too, as long as they serve
        super().terminate_all()


def _serve(settings: Settings, *, reload: bool) -> None:
    options = _server_options(settings)
    if reload:
        uvicorn.run(**options | {"workers": 1, "reload": True, "reload_dirs": [str(Path(__file__).parent)]})
        return
    if settings.workers == 1:
        uvicorn.run(**options)
        return
    config = uvicorn.Config(**options)
    supervisor = _Supervisor(config, sockets=[config.bind_socket()])
    supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        sys.exit(STARTUP_FAILURE)


def _server_options(settings: Settings) -> dict[str, Any]:
    return {
        "app": "app.main:create_app",
        "factory": True,
        "host": settings.host,
        "port": settings.port,
        "workers": settings.workers,
        "http": "app.api.http_protocol:BoundedHttpProtocol",
        "log_config": None,
        "access_log": False,
        "proxy_headers": False,  # only TRUSTED_PROXIES decides whom to believe
        "server_header": False,
        "date_header": False,
        "timeout_graceful_shutdown": 10,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app", description=__doc__)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--reload", action="store_true", help="start anew, as one process, when the code changes")
    parser.add_argument("--welcome", action="store_true", help="say what to type next, once it is up")
    return parser.parse_args()


def _welcome(settings: Settings) -> None:
    """Say what to type next, as soon as requests are answered."""
    url = f"http://{settings.host}:{settings.port}"
    while not _answers(url):
        time.sleep(0.1)
    port = "" if settings.port == Settings.model_fields["port"].default else f" --url {url}"
    print(
        f"\nOctopus is at {url}. Next, in another terminal:\n\n"
        f"  curl -X POST {url}/bootstrap        # the master API key, shown once\n"
        f"  python3 scripts/demo.py{port}              # a walk through everything\n"
        f"  python3 scripts/create_superuser.py    # an administrator for {url}/docs\n",
        flush=True,
    )


def _answers(url: str) -> bool:
    """Whether something comes back, be it a refusal because of the host name. No proxy has a say in that."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"{url}/health/live", timeout=1).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
