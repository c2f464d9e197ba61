"""The way of a browser: a page of another origin uploads with a progress bar, and shows a thumbnail from a link."""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests import test_server
from tests.factories import PASSWORD
from tests.hostile_files import noise
from tests.test_server import Server, free_port

EMAIL = "ada@example.com"
PAGE = Path(__file__).with_name("upload_page.html")
CHROMIUM = Path("/usr/bin/chromium")
SECOND = 4 * 1024 * 1024  # bytes that the line takes in one
WIDTH, HEIGHT = 1600, 1200


def program() -> str:
    found = str(CHROMIUM) if CHROMIUM.exists() else shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        missing = "There is no Chromium."
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


@contextmanager
def page_at(port: int, api: str) -> Iterator[None]:
    """A little server of the page, and of nothing else."""
    content = PAGE.read_text().replace("{{api}}", api).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def browser_page() -> Iterator[Page]:
    found = program()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page()
        line = page.context.new_cdp_session(page)
        line.send("Network.enable")
        speed = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": SECOND}
        line.send("Network.emulateNetworkConditions", speed)
        yield page
        browser.close()


@pytest.fixture
def home(database_url: str, short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the page, which speaks to a service at another."""
    port, page_port = free_port(), free_port()
    monkeypatch.setattr(test_server, "free_port", lambda: port)
    api, address = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{page_port}"
    server = Server(short_folder, DATABASE_URL=database_url, PUBLIC_URL=api, CORS_ORIGINS=json.dumps([address]))
    try:
        server.ready().post("/api/v1/users", {"email": EMAIL, "password": PASSWORD})
        with page_at(page_port, api):
            yield address
    finally:
        server.kill()


def photo(folder: Path) -> Path:
    """Some megabytes, which take a while."""
    file = folder / "holiday.png"
    Image.frombytes("RGB", (WIDTH, HEIGHT), noise(3 * WIDTH * HEIGHT)).save(file, "PNG", compress_level=1)
    return file


class TestPage:
    @pytest.mark.parametrize("way", ["form", "direct"])
    def test_uploads_a_photo_and_shows_its_thumbnail(
        self, home: str, browser_page: Page, tmp_path: Path, way: str
    ) -> None:
        file = photo(tmp_path)
        browser_page.goto(home)
        browser_page.fill("#email", EMAIL)
        browser_page.fill("#password", PASSWORD)
        browser_page.set_input_files("#file", file)

        browser_page.click(f"#{way}")
        browser_page.wait_for_function("document.getElementById('state').value", timeout=60_000)

        state = browser_page.locator("#state")
        thumbnail = browser_page.locator("#thumbnail")
        progress = browser_page.evaluate("progress")
        assert state.evaluate("field => field.value") == "clean"
        assert state.get_attribute("data-digest") == hashlib.sha256(file.read_bytes()).hexdigest()
        assert thumbnail.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [256, 192]
        assert len(progress) > 3
        assert progress == sorted(progress)
        assert progress[-1] == 100
        assert 0 < progress[0] < 100
