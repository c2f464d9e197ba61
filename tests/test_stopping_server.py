"""How a server starts without its database, and how it is told to stop behind a load balancer."""

import socket

import httpx
import pytest
from pymongo import MongoClient

from app.db.preflight import fault_of_database
from tests.test_server import Raw, Start, free_port, start, until

__all__ = ["start"]  # a fixture


class TestStop:
    def test_is_told_to_probes_first_and_requests_go_on_meanwhile(self, start: Start, database_url: str) -> None:
        server = start("--workers", "2", DATABASE_URL=database_url, SHUTDOWN_DELAY_SECONDS="5").ready()

        server.process.terminate()
        until(lambda: self.readiness(server.port) == [503] * 4)  # of both workers
        answers = [httpx.get(f"http://127.0.0.1:{server.port}{path}").status_code for path in ("/", "/health/live")]

        assert answers == [200, 200]
        told = httpx.get(f"http://127.0.0.1:{server.port}/health/ready").json()
        assert told["checks"] == {"database": "ok", "storage": "ok", "server": "stopping"}
        assert server.process.wait(timeout=5 + max(10, 3 * server.took_to_start)) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))

    @staticmethod
    def readiness(port: int) -> list[int]:
        return [httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code for _ in range(4)]


class TestStartWithoutTheDatabase:
    @pytest.mark.parametrize("workers", ["1", "2"])
    def test_ends_with_a_sentence_and_no_secret(self, start: Start, workers: str) -> None:
        nowhere = f"127.0.0.1:{free_port()}"
        server = start("--workers", workers, DATABASE_URL=f"mongodb://ada:s3cret@{nowhere}/tea")

        assert server.process.wait(timeout=30) == 1

        text = server.log.read_text()
        assert text.startswith(f"DATABASE_URL: no server that takes writes answers at {nowhere} within 5 s.")
        assert (len(text.splitlines()), "s3cret" in text) == (1, False)

    def test_says_what_is_wrong_with_the_url(self, mongodb: MongoClient[Raw], database_url: str) -> None:
        host, port = mongodb.address or ("", 0)
        wrong_password = f"mongodb://ada:s3cret@{host}:{port}/tea"

        assert fault_of_database(database_url) is None
        assert fault_of_database(wrong_password) == f"DATABASE_URL: {host}:{port} refuses the user or the password"
        for url in ("mongodb://a@b@c/d", "mongodb://", "mongodb+srv://s3cret.invalid/tea"):
            fault = fault_of_database(url) or ""
            assert fault.startswith("DATABASE_URL: ")
            assert "s3cret" not in fault
