"""docs/api-reference.md says what the routes say."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_project_files import ROOT

Check = Callable[[], str]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Check:
    """What `scripts/write_api_reference.py --check` says of a copy of the page; nothing when all is well."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("write_api_reference")
    monkeypatch.setattr("sys.argv", ["write_api_reference.py", "--check"])
    monkeypatch.setattr("environment.enter", lambda _: None)
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")

    def run() -> str:
        try:
            script.main()
        except SystemExit as refusal:
            return str(refusal.code)
        return ""

    return run


def test_page_is_what_the_routes_say(check: Check, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "api-reference.md").read_text()
    (tmp_path / "page.md").write_text(page)
    assert check() == ""

    (tmp_path / "page.md").write_text(page.replace("Buy", "Sell") + " ")
    assert check() == "Not what the code says: page.md. Run `python3 scripts/write_api_reference.py`."
    assert (tmp_path / "page.md").read_text() != page


def test_page_says_who_may_what_comes_and_what_can_go_wrong() -> None:
    page = (ROOT / "docs" / "api-reference.md").read_text()

    assert "| `weak_password` | 422 |" in page
    assert "#### `POST /api/v1/items`\n" in page
    listing = page.partition("#### `GET /api/v1/users`\n")[2].partition("####")[0]
    assert "*Who*: `users:read` over others'. *Answers*: 200 list of [UserRead](#userread), 404" in listing
    assert "| `limit` | query | integer, 1 to 200 (`50`) | Rows of a page |" in listing
    assert "*Who*: anyone. *Answers*: 200 [TokenPair](#tokenpair)" in page
    assert "#### UserRead\n" in page
