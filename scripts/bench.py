"""What everything costs: requests per second and p99 of Octopus against bare FastAPI and PyMongo, side by side.

    python3 scripts/bench.py [--seconds 8] [--rounds 3]

Needs Linux, two cores and `wrk` on PATH. The server under test has one core; its load and the database have the other.
Both servers are up all the time and are measured in turn, so that the ratio holds when the machine's speed drifts.
"""

import argparse
import asyncio
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import environment
from bench_login import free_port, wait_for_port

SERVER_CORE, LOAD_CORE = "0", "1"
USERS, CONVERSATIONS_EACH, MESSAGES_EACH = 64, 4, 60
CONNECTIONS = 32
SECRET = "bench-" + os.urandom(24).hex()


class Target(NamedTuple):
    """One request of a workload: a path below the conversations, and the credential it shows."""

    path: str
    header: str


class Result(NamedTuple):
    per_second: float
    p99_ms: float


class Workload(NamedTuple):
    name: str
    suffix: str
    credential: str
    body: str | None = None


WORKLOADS = (
    Workload("one conversation, bearer token", "", "token"),
    Workload("one conversation, API key", "", "key"),
    Workload("page of 50 messages, bearer token", "/messages?limit=50", "token"),
    Workload("post a message, bearer token", "/messages", "token", '{"role":"user","content":"Is the kettle on?"}'),
)


def main() -> None:
    environment.enter("requirements-dev.txt")
    if not shutil.which("wrk"):
        sys.exit("wrk is needed: apt-get install wrk")
    options = read_options()
    os.sched_setaffinity(0, {int(LOAD_CORE)})  # the database, started below, inherits it
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="octopus-bench-")))
        targets, url = stack.enter_context(stored(folder))
        bare = stack.enter_context(server(folder, "bench_bare:app", url))
        octopus = stack.enter_context(server(folder, "octopus", url))
        print(f"{'':36}{'bare/s':>9}{'octopus/s':>11}{'ratio':>7}{'bare p99':>11}{'octopus p99':>13}")
        for workload in WORKLOADS:
            _measure(workload, bare, octopus, targets[workload.credential], folder, options)


def _measure(
    workload: Workload, bare: str, octopus: str, targets: list[Target], folder: Path, options: argparse.Namespace
) -> None:
    runs: dict[str, list[Result]] = {bare: [], octopus: []}
    for base, prefix in ((bare, ""), (octopus, "/api/v1")):
        load(f"{base}{prefix}", workload, targets, folder, 2)  # warm
    for _ in range(options.rounds):
        for base, prefix in ((bare, ""), (octopus, "/api/v1")):
            runs[base].append(load(f"{base}{prefix}", workload, targets, folder, options.seconds))
    ratio = statistics.median(
        ours.per_second / theirs.per_second for theirs, ours in zip(runs[bare], runs[octopus], strict=True)
    )
    rates = [statistics.median(run.per_second for run in runs[base]) for base in (bare, octopus)]
    tails = [statistics.median(run.p99_ms for run in runs[base]) for base in (bare, octopus)]
    print(
        f"{workload.name:36}{rates[0]:9.0f}{rates[1]:11.0f}{ratio:7.2f}{tails[0]:8.1f} ms{tails[1]:10.1f} ms",
        flush=True,
    )


def load(base: str, workload: Workload, targets: list[Target], folder: Path, seconds: int) -> Result:
    """Let wrk send the workload to every target in turn; a run with errors is no result."""
    origin, _, prefix = base.removeprefix("http://").partition("/")
    script = folder / "load.lua"
    script.write_text(_lua(f"/{prefix}" if prefix else "", workload, targets))
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", str(script), f"http://{origin}"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
    if "Non-2xx" in output:
        sys.exit(f"{workload.name}: errors\n{output}")
    per_second = float(re.findall(r"Requests/sec:\s+([\d.]+)", output)[0])
    value, unit = re.findall(r"99%\s+([\d.]+)(us|ms|s)", output)[0]
    return Result(per_second, float(value) * {"us": 0.001, "ms": 1, "s": 1000}[unit])


def _lua(prefix: str, workload: Workload, targets: list[Target]) -> str:
    rows = ",".join(f'{{"{prefix}{target.path}{workload.suffix}","{target.header}"}}' for target in targets)
    method, body = ("POST", f"'{workload.body}'") if workload.body else ("GET", "nil")
    name = "Authorization" if workload.credential == "token" else "Octopus-API-Key"
    return (
        f"local rows = {{{rows}}}\nlocal at = 0\n"
        "request = function()\n"
        "  at = at % #rows + 1\n"
        f'  local headers = {{["{name}"] = rows[at][2], ["Content-Type"] = "application/json"}}\n'
        f'  return wrk.format("{method}", rows[at][1], headers, {body})\n'
        "end\n"
    )


@contextmanager
def stored(folder: Path) -> Iterator[tuple[dict[str, list[Target]], str]]:
    """A database of its own with users, sessions, keys, conversations and messages."""
    import service  # noqa: F401, PLC0415 - makes `app` importable

    from app.core.config import Settings, use_settings  # noqa: PLC0415
    from app.db.embedded import embedded_server  # noqa: PLC0415

    use_settings(Settings(_env_file=None, environment="test", secret_key=SECRET))
    with embedded_server(folder) as url:
        yield asyncio.run(_fill(url)), url


async def _fill(url: str) -> dict[str, list[Target]]:
    from app.db.mongo import connected  # noqa: PLC0415
    from tests.factories import make_api_key, make_conversation, make_messages, make_signed_in  # noqa: PLC0415

    targets: dict[str, list[Target]] = {"token": [], "key": []}
    async with connected(url):
        guest = await make_signed_in()
        for _ in range(USERS):
            user = await make_signed_in(limits={"daily_messages": None})  # it writes all the time
            key = await make_api_key("read", owner=user)
            for _ in range(CONVERSATIONS_EACH):
                conversation = await make_conversation(user, guest)
                await make_messages(conversation, MESSAGES_EACH, by=user)
                path = f"/conversations/{conversation.id}"
                targets["token"].append(Target(path, f"Bearer {user.access_token}"))
                targets["key"].append(Target(path, key.text))
    return targets


@contextmanager
def server(folder: Path, app: str, url: str, *, cores: str = SERVER_CORE, workers: int = 1) -> Iterator[str]:
    """One server on its cores, with its log in a file; its address."""
    port = free_port()
    uvicorn = ["uvicorn", app, "--app-dir", "scripts", "--no-access-log", "--log-level", "warning"]
    module = ["app"] if app == "octopus" else uvicorn
    command = ["taskset", "-c", cores, sys.executable, "-m", *module, "--port", str(port)]
    command += [] if workers == 1 else ["--workers", str(workers)]
    ample = {f"RATE_LIMIT_{name}": "1000000000/minute" for name in ("ANONYMOUS", "AUTHENTICATED")}
    variables = {**os.environ, "DATABASE_URL": url, "ENVIRONMENT": "test", "SECRET_KEY": SECRET, **ample}
    with (folder / f"{port}.log").open("wb") as log:
        process: subprocess.Popen[Any] = subprocess.Popen(command, env=variables, stdout=log, stderr=log)  # noqa: S603
        try:
            wait_for_port(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=8, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, in turn")
    return parser.parse_args()


if __name__ == "__main__":
    main()
