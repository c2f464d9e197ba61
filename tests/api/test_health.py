import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from httpx import AsyncClient

from app.services.storage import get_storage
from tests.conftest import Serve

REMEMBERED = 1.0  # seconds for which a check is good
PROBES = ["/health", "/health/live", "/health/ready"]


class Road:
    """The way to the database, which a test may close."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.is_open = True
        self.writers: list[StreamWriter] = []

    async def carry(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Carry what a client sends to the database and back, until either end hangs up."""
        self.writers.append(writer)
        if self.is_open:
            there_reader, there_writer = await asyncio.open_connection(self.host, self.port)
            self.writers.append(there_writer)
            await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))
        writer.close()

    def close(self) -> None:
        self.is_open = False
        for writer in self.writers:
            writer.transport.abort()

    def reopen(self) -> None:
        self.is_open = True


async def _copy(reader: StreamReader, writer: StreamWriter) -> None:
    try:
        while content := await reader.read(65536):
            writer.write(content)
    except ConnectionError:
        pass
    finally:
        writer.close()


@pytest.fixture
async def road(database_url: str) -> AsyncIterator[tuple[Road, str]]:
    """A road to the test's database, and the URL of its near end."""
    address = urlsplit(database_url)
    road = Road(address.hostname or "", address.port or 0)
    async with _served(road) as port:
        yield road, f"mongodb://127.0.0.1:{port}{address.path}?directConnection=true"


@asynccontextmanager
async def _served(road: Road) -> AsyncIterator[int]:
    server = await asyncio.start_server(road.carry, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        road.close()


class TestWelcome:
    async def test_says_where_to_read_on(self, client: AsyncClient) -> None:
        response = await client.get("/")

        links = response.json()
        assert response.status_code == 200
        for name in ("docs", "openapi", "health"):
            assert (await client.get(links[name])).status_code == 200


class TestProbe:
    @pytest.mark.parametrize("path", ["/health", "/health/ready"])
    async def test_is_healthy_while_database_and_storage_answer(self, client: AsyncClient, path: str) -> None:
        response = await client.get(path)

        assert response.status_code == 200
        assert response.json() == {
            "status": "healthy",
            "version": "0.1.0",
            "checks": {"database": "ok", "storage": "ok"},
        }

    async def test_is_alive_while_the_process_runs(self, client: AsyncClient) -> None:
        response = await client.get("/health/live")

        assert response.status_code == 200
        assert response.json() == {"status": "alive"}

    @pytest.mark.parametrize("path", PROBES)
    async def test_is_never_stored_by_a_cache(self, client: AsyncClient, path: str) -> None:
        response = await client.get(path)

        assert response.headers["cache-control"] == "no-store"

    @pytest.mark.parametrize("path", PROBES)
    async def test_is_not_limited(self, serve: Serve, path: str) -> None:
        async with serve(rate_limit_anonymous="1/day", rate_limit_auth="1/day") as client:
            responses = [await client.get(path) for _ in range(5)]
            first, second = [await client.get("/") for _ in range(2)]

        assert [response.status_code for response in responses] == [200] * 5
        assert (first.status_code, second.status_code) == (200, 429)

    @pytest.mark.parametrize("path", PROBES)
    async def test_needs_no_good_credentials(self, client: AsyncClient, path: str) -> None:
        response = await client.get(path, headers={"Authorization": "Bearer nonsense"})

        assert response.status_code == 200


class TestCrowd:
    async def test_is_one_question_to_the_storage(self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = 0

        async def check() -> None:
            nonlocal asked
            asked += 1
            await asyncio.sleep(0.01)

        monkeypatch.setattr(get_storage(), "check", check)
        crowd = await asyncio.gather(*(client.get(path) for path in ["/health", "/health/ready"] * 50))
        again = await client.get("/health")
        in_time = asked
        await asyncio.sleep(REMEMBERED)
        await client.get("/health")

        assert {answer.status_code for answer in [*crowd, again]} == {200}
        assert (in_time, asked) == (1, 2)

    async def test_goes_on_when_the_first_of_it_hangs_up(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun = asyncio.Event()

        async def check() -> None:
            begun.set()
            await asyncio.sleep(0.01)

        monkeypatch.setattr(get_storage(), "check", check)
        first, second = [asyncio.create_task(client.get("/health")) for _ in range(2)]
        await begun.wait()
        first.cancel()

        assert (await second).status_code == 200


class TestProbeWithoutDatabase:
    @pytest.mark.parametrize("path", ["/health", "/health/ready"])
    async def test_names_what_does_not_answer(self, serve: Serve, road: tuple[Road, str], path: str) -> None:
        way, url = road
        async with serve(database_url=url) as client:
            way.close()
            gone = await client.get(path)
            way.reopen()
            await asyncio.sleep(REMEMBERED)
            back = await client.get(path)

        assert gone.status_code == 503
        checks = {"database": "unavailable", "storage": "ok"}
        assert gone.json() == {"status": "unhealthy", "version": "0.1.0", "checks": checks}
        assert back.status_code == 200

    async def test_is_still_alive(self, serve: Serve, road: tuple[Road, str]) -> None:
        way, url = road
        async with serve(database_url=url) as client:
            way.close()
            response = await client.get("/health/live")
            way.reopen()

        assert response.status_code == 200


class TestProbeWithoutStorage:
    async def test_names_the_storage(self, serve: Serve, tmp_path: Path) -> None:
        async with serve() as client:
            (tmp_path / "uploads").write_text("no folder")
            gone = await client.get("/health")
            (tmp_path / "uploads").unlink()
            await asyncio.sleep(REMEMBERED)
            back = await client.get("/health")

        checks = {"database": "ok", "storage": "unavailable"}
        assert (gone.status_code, gone.json()["checks"]) == (503, checks)
        assert back.status_code == 200

    async def test_starts_all_the_same(self, serve: Serve) -> None:
        nobody = "AccountName=a;AccountKey=YQ==;BlobEndpoint=http://127.0.0.1:9/a;DefaultEndpointsProtocol=http"

        async with serve(azure_storage_connection_string=nobody) as client:
            alive, ready = await client.get("/health/live"), await client.get("/health/ready")

        assert (alive.status_code, ready.status_code) == (200, 503)
