"""Whether a failed sign-in tells by its time that there is such an account: known and unknown names, in turn.

    python3 scripts/bench_login.py [--rounds 300]

Starts a database and a server of its own, with bcrypt at the cost of production and no limit in the way. The ratio of
the medians should be within 5 % of 1; a second set of known names shows what the machine makes of equal work.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

import environment

SECRET: Final = os.urandom(32).hex()
ROUNDS_OF_BCRYPT: Final = 12
NAMES: Final = 64  # of each kind, so that none fails as often as locks it
WARM_UP: Final = 10
WITHIN: Final = 0.05
KINDS: Final = ("known", "control", "unknown")


def main() -> None:
    environment.enter("requirements-dev.txt")
    options = _options()
    with tempfile.TemporaryDirectory(prefix="octopus-bench-") as name:
        folder = Path(name)
        with _stored(folder) as url, start_server(folder, url) as (port, _):
            times = _measure(port, options.rounds)
    medians = {kind: statistics.median(times[kind]) * 1000 for kind in KINDS}
    for kind in KINDS:
        ratio = medians[kind] / medians["known"]
        low, _, high = statistics.quantiles(times[kind], n=4)
        print(
            f"{kind:8} median {medians[kind]:8.2f} ms   quartiles {low * 1000:8.2f} {high * 1000:8.2f}   {ratio:6.3f}"
        )
    if abs(medians["unknown"] / medians["known"] - 1) > WITHIN:
        sys.exit(f"The medians differ by more than {WITHIN:.0%}.")


def _measure(port: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each sign-in. Every round has one of each kind, in random order, over one connection."""
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    for number in range(-WARM_UP, rounds):
        for kind in random.sample(KINDS, len(KINDS)):
            seconds = _fail(connection, f"{kind}-{number % NAMES}@example.com")
            if number >= 0:
                times[kind].append(seconds)
    connection.close()
    return times


def _fail(connection: HTTPConnection, email: str) -> float:
    body = json.dumps({"email": email, "password": "a wrong password"})
    started = time.perf_counter()
    connection.request("POST", "/api/v1/auth/login", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    seconds = time.perf_counter() - started
    if answer.status != HTTPStatus.UNAUTHORIZED:
        sys.exit(f"{answer.status} is not the answer to a wrong password: {content.decode()}")
    return seconds


@contextmanager
def _stored(folder: Path) -> Iterator[str]:
    """A database of its own with the known accounts; its address."""
    import service  # noqa: F401, PLC0415 - makes `app` importable

    from app.core.config import Settings, use_settings  # noqa: PLC0415
    from app.db.embedded import embedded_server  # noqa: PLC0415

    use_settings(Settings(_env_file=None, environment="test", secret_key=SECRET, bcrypt_rounds=ROUNDS_OF_BCRYPT))
    with embedded_server(folder) as url:
        asyncio.run(_fill(url))
        yield url


async def _fill(url: str) -> None:
    from app.core.passwords import hash_password  # noqa: PLC0415
    from app.db.mongo import connected  # noqa: PLC0415
    from tests.factories import PASSWORD, make_user  # noqa: PLC0415

    async with connected(url):
        hashed = await hash_password(PASSWORD)
        for kind in ("known", "control"):
            for number in range(NAMES):
                user = await make_user(email=f"{kind}-{number}@example.com")
                await user.document.set({"hashed_password": hashed})


@contextmanager
def start_server(folder: Path, url: str) -> Iterator[tuple[int, "subprocess.Popen[Any]"]]:
    """The service, with its log in a file; its port, and its process."""
    port = free_port()
    limits = {f"RATE_LIMIT_{name}": "1000000000/minute" for name in ("ANONYMOUS", "AUTH", "AUTHENTICATED")}
    variables = {
        **os.environ,
        **limits,
        "DATABASE_URL": url,
        "ENVIRONMENT": "test",
        "SECRET_KEY": SECRET,
        "PASSWORD_SCHEME": "bcrypt",
        "BCRYPT_ROUNDS": str(ROUNDS_OF_BCRYPT),
        "LOCKOUT_ATTEMPTS": "100",
        "LOCKOUT_WINDOW_MINUTES": "1",
    }
    command = [sys.executable, "-m", "app", "--port", str(port)]
    with (folder / "server.log").open("wb") as log:
        process: subprocess.Popen[Any] = subprocess.Popen(command, env=variables, stdout=log, stderr=log)  # noqa: S603
        try:
            wait_for_port(port, process)
            yield port, process
        finally:
            process.terminate()
            process.wait()


def wait_for_port(port: int, process: subprocess.Popen[Any]) -> None:
    """Wait until something is answered: the supervisor of several workers has the port before one of them serves."""
    give_up_at = time.monotonic() + 90
    while time.monotonic() < give_up_at and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=1).close()  # nosec B310
        except urllib.error.HTTPError:
            return  # the yardsticks have no such path
        except OSError:
            time.sleep(0.05)
        else:
            return
    sys.exit(f"The server on port {port} did not start.")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300, help="sign-ins of each kind")
    return parser.parse_args()


if __name__ == "__main__":
    main()
