"""The metrics of several workers: whichever of them is asked, all have counted."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.scraping import Scrape, parsed
from tests.test_server import Server, Start, start, until

__all__ = ["start"]  # the fixture
ASKED = 40
ROUTE = "/api/v1/users/username/{username}"


def scraped(server: Server) -> Scrape:
    """On a connection of its own, so that another worker may answer."""
    with httpx.Client(base_url=str(server.client.base_url), timeout=30) as client:
        return parsed(client.get("/metrics").text)


def ask(server: Server) -> None:
    def one(number: int) -> None:
        with httpx.Client(base_url=str(server.client.base_url), timeout=30) as client:
            assert client.get(f"/api/v1/users/username/nobody{number}").status_code == 404

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(ASKED)))


def asked(server: Server) -> float:
    return scraped(server).value("octopus_http_requests_total", route=ROUTE)


def workers(server: Server) -> set[int]:
    return {int(pid) for pid in scraped(server).labels("octopus_process_resident_memory_bytes", "pid")}


class TestWorkers:
    def test_are_added_up_and_none_is_forgotten_when_it_dies(
        self, start: Start, database_url: str, tmp_path: Path
    ) -> None:
        shared = tmp_path / "metrics"
        server = start("--workers", "2", DATABASE_URL=database_url, METRICS_DIR=str(shared)).ready()
        until(lambda: len(workers(server)) == 2)
        ask(server)

        until(lambda: all(asked(server) == ASKED for _ in range(8)))
        before = scraped(server)
        died = min(workers(server))
        os.kill(died, signal.SIGKILL)
        until(lambda: died not in workers(server))

        assert [asked(server) for _ in range(8)] == [ASKED] * 8
        after = scraped(server)
        assert after.value("octopus_workers") == len(workers(server))
        assert after.value("octopus_http_requests_in_flight") < 3
        bucket = "octopus_http_request_duration_seconds_bucket"
        assert after.value(bucket, route=ROUTE, le="+Inf") == ASKED
        assert after.value(bucket, route=ROUTE, le="0.5") >= before.value(bucket, route=ROUTE, le="0.5")
        assert len(list(shared.iterdir())) <= 2 * 2 + 2  # two of each worker, that of the dead, and the readers' lock

        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
