"""How fast a large file goes in and out, and what that costs in memory, against copying the same bytes bare.

    python3 scripts/bench_uploads.py [--mib 2048] [--rounds 3] [--storage folder azure]

Starts a database and servers of its own, and for `azure` an Azurite (see tests/azurite_server.py). The yardstick is
Starlette alone, with the same storage: it writes what comes to a file, brings that to the disk, as the service does,
and sends it; or it has Azure's library copy it as that does by default. Both run side by side, in turns. Half as fast
is enough, and 64 MiB over idle.
"""

import argparse
import asyncio
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final, NamedTuple

import environment

WANTED_RATIO: Final = 0.5
MEMORY_WITHIN: Final = 64.0  # MiB
MIB: Final = 1024 * 1024
BOUNDARY: Final = "octopus-bench"
HEAD: Final = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="large.png"\r\n'
    "Content-Type: image/png\r\n\r\n"
).encode()
TAIL: Final = f"\r\n--{BOUNDARY}--\r\n".encode()
# What stands for a file: the beginning of a picture, then noise.
FIRST: Final = (b"\x89PNG\r\n\x1a\n" + bytes(4) + b"\rIHDR").ljust(64, b"\0")
BLOCK: Final = os.urandom(MIB - len(FIRST))
BARE: Final = {
    "folder": """
import asyncio
import os
from itertools import count
from starlette.applications import Starlette
from starlette.responses import FileResponse, Response
from starlette.routing import Route

names = count()

async def put(request):
    request.app.state.newest = f"{next(names)}.bin"
    with open(request.app.state.newest, "xb") as file:
        async for chunk in request.stream():
            file.write(chunk)
        await asyncio.to_thread(os.fsync, file.fileno())
    return Response(status_code=204)

async def get(request):
    return FileResponse(request.app.state.newest)

app = Starlette(routes=[Route("/", put, methods=["PUT"]), Route("/", get)])
""",
    "azure": """
import os
from azure.storage.blob.aio import BlobServiceClient
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

service = BlobServiceClient.from_connection_string(os.environ["AZURE_STORAGE_CONNECTION_STRING"])
blob = service.get_blob_client(os.environ["AZURE_STORAGE_CONTAINER"], "bare")

async def put(request):
    await blob.upload_blob(request.stream(), length=int(request.headers["content-length"]), overwrite=True)
    return Response(status_code=204)

async def get(request):
    download = await blob.download_blob()
    return StreamingResponse(download.chunks(), headers={"content-length": str(download.size)})

app = Starlette(routes=[Route("/", put, methods=["PUT"]), Route("/", get)])
""",
}


class Copied(NamedTuple):
    up: float  # seconds
    down: float


class Measured(NamedTuple):
    bare: Copied
    service: Copied
    growth: float  # MiB of memory


def main() -> None:
    environment.enter("requirements-dev.txt")
    options = _options()
    is_good = True
    print(f"{options.mib} MiB     in MiB/s  ratio   out MiB/s  ratio   memory over idle")
    for kind in options.storage:
        with tempfile.TemporaryDirectory(prefix="octopus-bench-", dir=options.folder) as name:
            bare, service, growth = _measured(kind, Path(name), options.mib, options.rounds)
        ratios = bare.up / service.up, bare.down / service.down
        all_mib = options.mib * options.rounds
        print(
            f"{kind:8} {all_mib / service.up:12.0f}  {ratios[0]:5.2f}  {all_mib / service.down:10.0f}  {ratios[1]:5.2f}"
            f"  {growth:8.1f} MiB"
        )
        is_good = is_good and min(ratios) >= WANTED_RATIO and growth <= MEMORY_WITHIN
    if not is_good:
        sys.exit("That is too slow, or too much.")


def _measured(kind: str, folder: Path, mib: int, rounds: int) -> Measured:
    """The bare one and the service in turns, so that what else the machine does meets both."""
    with _service(kind, folder) as (port, process, headers), _bare(kind, folder) as bare_port:
        _copy(bare_port, None, 8)  # so that everything is loaded
        _copy(port, headers, 8)
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak begins anew
        before = peak(process.pid)
        pairs = [(_copy(bare_port, None, mib), _copy(port, headers, mib)) for _ in range(rounds)]
        growth = peak(process.pid) - before
    bare, service = ([pair[which] for pair in pairs] for which in (0, 1))
    return Measured(_sum(bare), _sum(service), growth)


def _sum(copies: Sequence[Copied]) -> Copied:
    return Copied(sum(each.up for each in copies), sum(each.down for each in copies))


def _copy(port: int, headers: dict[str, str] | None, mib: int) -> Copied:
    connection = HTTPConnection("127.0.0.1", port, timeout=600)
    size, started = mib * MIB, time.perf_counter()
    if headers is None:
        _send(connection, "PUT", "/", {"Content-Length": str(size)}, mib)
        up, path = time.perf_counter() - started, "/"
    else:
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        own = {**headers, "Content-Length": str(size + len(HEAD) + len(TAIL)), "Content-Type": kind}
        answer = _send(connection, "POST", "/api/v1/uploads", own, mib)
        up, path = time.perf_counter() - started, f"/api/v1/uploads/{json.loads(answer)['id']}/content"
    return Copied(up, _fetch(connection, path, headers or {}, size))


def _fetch(connection: HTTPConnection, path: str, headers: dict[str, str], size: int) -> float:
    """Seconds."""
    started = time.perf_counter()
    connection.request("GET", path, headers=headers)
    response, buffer, received = connection.getresponse(), bytearray(MIB), 0
    while count := response.readinto(buffer):
        received += count
    if received != size:
        sys.exit(f"{received} of {size} bytes came back.")
    return time.perf_counter() - started


def _send(connection: HTTPConnection, method: str, path: str, headers: dict[str, str], mib: int) -> bytes:
    connection.putrequest(method, path)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    is_form = "Content-Type" in headers
    connection.send(HEAD if is_form else b"")
    block = FIRST + BLOCK
    for _ in range(mib):
        connection.send(block)
    connection.send(TAIL if is_form else b"")
    answer = connection.getresponse()
    content = answer.read()
    if answer.status not in {HTTPStatus.CREATED, HTTPStatus.NO_CONTENT}:
        sys.exit(f"{answer.status}: {content.decode()}")
    return content


@contextmanager
def _bare(kind: str, folder: Path) -> Iterator[int]:
    from bench_login import free_port, wait_for_port  # noqa: PLC0415 - importable only inside the environment

    (folder / "bare.py").write_text(BARE[kind])
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "bare:app", "--port", str(port), "--no-access-log"]
    process: subprocess.Popen[Any] = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        wait_for_port(port, process)
        yield port
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _service(kind: str, folder: Path) -> Iterator[tuple[int, "subprocess.Popen[Any]", dict[str, str]]]:
    import service  # noqa: F401, PLC0415 - makes `app` importable
    from bench_login import SECRET, start_server  # noqa: PLC0415

    from app.core.config import Settings, use_settings  # noqa: PLC0415
    from app.db.embedded import embedded_server  # noqa: PLC0415
    from tests.azurite_server import program, running_azurite  # noqa: PLC0415

    if kind == "azure" and program() is None:
        sys.exit("There is no azurite-blob on PATH, and AZURITE names none: --storage folder does without.")

    own = folder / kind
    own.mkdir()
    with ExitStack() as stack:
        os.environ |= {"DATA_DIR": str(own)}
        if kind == "azure":
            azurite = stack.enter_context(running_azurite())
            os.environ |= {
                "AZURE_STORAGE_CONNECTION_STRING": azurite.connection,
                "AZURE_STORAGE_CONTAINER": f"bench-{secrets.token_hex(4)}",
            }
        use_settings(Settings(_env_file=None, environment="test", secret_key=SECRET))
        url = stack.enter_context(embedded_server(own))
        port, process = stack.enter_context(start_server(own, url))
        yield port, process, asyncio.run(_key(url))


async def _key(url: str) -> dict[str, str]:
    from app.db.mongo import connected  # noqa: PLC0415
    from tests.factories import make_api_key  # noqa: PLC0415

    async with connected(url):
        return (await make_api_key("admin")).headers


def peak(pid: int) -> float:
    """The most memory that the process has held, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found  # noqa: S101 - every process has one
    return int(found[1]) / 1024


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=2048, help="how large the file is")
    parser.add_argument("--rounds", type=int, default=3, help="how often in turns")
    parser.add_argument("--storage", nargs="*", choices=("folder", "azure"), default=["folder", "azure"])
    parser.add_argument("--folder", type=Path, help="where files go; by default the one for temporary files")
    return parser.parse_args()


if __name__ == "__main__":
    main()
