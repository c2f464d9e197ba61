"""How long verifying the audit chain takes, and what an export of it costs in memory.

    python3 scripts/bench_audit.py [--events 100000]

Starts a database and a server of its own, and seals that many events. Verifying 100,000 should take less than 10 s, and
the server's memory should not grow with the export. Meanwhile another client asks for its health: how long the longest
of those answers took shows whether anybody was kept waiting.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final, NamedTuple

import environment
from bench_uploads import peak

VERIFY_WITHIN: Final = 10.0  # seconds for 100,000
MEMORY_WITHIN: Final = 32.0  # MiB, whatever the length
CHUNK: Final = 64 * 1024
AT_ONCE: Final = 5000


class Measured(NamedTuple):
    seconds: float
    size: int
    longest_wait: float
    answer: bytes


def main() -> None:
    environment.enter("requirements-dev.txt")
    options = _options()
    from bench_login import start_server  # noqa: PLC0415 - importable only inside the environment

    with tempfile.TemporaryDirectory(prefix="octopus-bench-") as name:
        folder = Path(name)
        with _filled(folder, options.events) as (url, key), start_server(folder, url) as (port, process):
            headers = {"Octopus-API-Key": key}
            verified = _measure(port, headers, "/verify", keep=True)
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak begins anew
            before = peak(process.pid)
            exported = _measure(port, headers, "/export")
            growth = peak(process.pid) - before
    if not json.loads(verified.answer)["valid"]:
        sys.exit(f"The chain is not valid: {verified.answer.decode()}")
    print(f"verify {verified.seconds:7.2f} s   others waited {verified.longest_wait * 1000:6.0f} ms at most")
    print(
        f"export {exported.seconds:7.2f} s   others waited {exported.longest_wait * 1000:6.0f} ms at most   "
        f"{exported.size / 2**20:.0f} MiB   memory grew by {growth:.1f} MiB"
    )
    if verified.seconds > VERIFY_WITHIN * options.events / 100_000 or growth > MEMORY_WITHIN:
        sys.exit("That is too much.")


def _measure(port: int, headers: dict[str, str], path: str, *, keep: bool = False) -> Measured:
    waits: list[float] = []
    is_over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(port, waits, is_over))
    watcher.start()
    connection = HTTPConnection("127.0.0.1", port, timeout=600)
    started = time.perf_counter()
    connection.request("GET", f"/api/v1/admin/audit-events{path}", headers=headers)
    answer = connection.getresponse()
    size, kept = 0, b""
    while chunk := answer.read(CHUNK):
        size += len(chunk)
        kept += chunk if keep else b""
    seconds = time.perf_counter() - started
    is_over.set()
    watcher.join()
    if answer.status != HTTPStatus.OK:
        sys.exit(f"{answer.status} is not the answer to {path}.")
    return Measured(seconds, size, max(waits), kept)


def _watch(port: int, waits: list[float], is_over: threading.Event) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    while not is_over.is_set():
        started = time.perf_counter()
        connection.request("GET", "/health/live")
        connection.getresponse().read()
        waits.append(time.perf_counter() - started)
        time.sleep(0.01)


@contextmanager
def _filled(folder: Path, count: int) -> Iterator[tuple[str, str]]:
    """A database of its own with that many sealed events; its address, and a key that may read them."""
    import service  # noqa: F401, PLC0415 - makes `app` importable
    from bench_login import SECRET  # noqa: PLC0415

    from app.core.config import Settings, use_settings  # noqa: PLC0415
    from app.core.logging_config import configure_logging  # noqa: PLC0415
    from app.db.embedded import embedded_server  # noqa: PLC0415

    configure_logging("WARNING")
    use_settings(Settings(_env_file=None, environment="test", secret_key=SECRET))
    with embedded_server(folder) as url:
        yield url, asyncio.run(_fill(url, count))


async def _fill(url: str, count: int) -> str:
    from app.db.mongo import connected  # noqa: PLC0415
    from app.models.audit_event import AuditEvent  # noqa: PLC0415
    from app.services import audit_chain_service  # noqa: PLC0415
    from tests.factories import make_api_key  # noqa: PLC0415

    async with connected(url):
        started = time.perf_counter()
        for first in range(0, count, AT_ONCE):
            await AuditEvent.insert_many(
                [AuditEvent(**_event(first + at)) for at in range(min(AT_ONCE, count - first))]
            )
        inserted = time.perf_counter()
        await audit_chain_service.seal()
        print(f"seal   {time.perf_counter() - inserted:7.2f} s   after {inserted - started:.2f} s of inserting")
        return (await make_api_key("audit:read")).text


def _event(number: int) -> dict[str, Any]:
    """As large as most are."""
    from bson import ObjectId  # noqa: PLC0415

    return {
        "actor": {"kind": "user", "id": ObjectId(), "name": f"user{number}"},
        "action": "user:updated",
        "target": {"kind": "user", "id": ObjectId()},
        "outcome": "success",
        "ip": "192.0.2.7",
        "user_agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0",
        "request_id": os.urandom(12).hex(),
        "details": {"fields": ["full_name", "username"]},
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000, help="length of the chain")
    return parser.parse_args()


if __name__ == "__main__":
    main()
