import asyncio
import signal
from collections.abc import Iterator

import pytest
import uvicorn
from sse_starlette import sse

from app.core import stopping


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[uvicorn.Server]:
    """One that has begun to heed signals, before the library that looks for it was loaded."""
    monkeypatch.setattr(uvicorn.Server, "handle_exit", sse.AppStatus.original_handler)
    server = uvicorn.Server(uvicorn.Config("app.main:create_app", log_config=None))
    before = signal.signal(signal.SIGTERM, server.handle_exit)
    yield server
    signal.signal(signal.SIGTERM, before)


def has_ended() -> bool:
    """Whether the server has, as a stream finds it."""
    found = sse._get_uvicorn_server()  # type: ignore[no-untyped-call]
    return bool(found.should_exit)


class TestHeeded:
    async def test_leaves_the_server_to_be_found_by_streams_that_must_end_with_it(self, server: uvicorn.Server) -> None:
        with stopping.heeded(0):
            assert not has_ended()
            signal.raise_signal(signal.SIGTERM)

            assert stopping.is_stopping()
            assert has_ended()
            assert not sse.AppStatus.should_exit  # which lives on in the process

        assert signal.getsignal(signal.SIGTERM) == server.handle_exit
        with stopping.heeded(0):
            assert not stopping.is_stopping()

    @pytest.mark.usefixtures("server")
    async def test_waits_as_long_when_it_is_told_twice(self) -> None:
        with stopping.heeded(0.3):
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0)
            assert (stopping.is_stopping(), has_ended()) == (True, False)
            async with asyncio.timeout(10):
                while not has_ended():  # noqa: ASYNC110 - a timer tells nobody
                    await asyncio.sleep(0.01)
