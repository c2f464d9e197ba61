"""The pages that links in mails open."""

from html.parser import HTMLParser
from typing import Final

import pytest
from httpx import AsyncClient, Response

from app.models.user import User
from tests.conftest import Serve
from tests.factories import PASSWORD, make_user
from tests.mailbox import Mailbox, token_in

AUTH: Final = "/api/v1/auth"
NEW_PASSWORD: Final = "walrus-Compass-77-lagoon"
PAGES: Final = [f"{AUTH}/password/reset", f"{AUTH}/email/verify"]
HOSTILE: Final = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
UNUSABLE: Final = "The link is not valid, was used before, or has expired. Ask for another one."


class Page(HTMLParser):
    """What a browser finds on a page: tags, fields with their values, where forms go, text of alerts and the like."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.fields: dict[str | None, str | None] = {}
        self.target: str | None = None
        self.said: dict[str, str] = {}
        self._role: str | None = None
        self.feed(response.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self.attributes += attrs
        self._role = named.get("role")
        if tag == "input":
            self.fields[named["name"]] = named.get("value")
        if tag == "form":
            self.target = named["action"]

    def handle_data(self, data: str) -> None:
        if self._role:
            self.said[self._role] = self.said.get(self._role, "") + data

    def handle_endtag(self, _: str) -> None:
        self._role = None


async def mailed_token(client: AsyncClient, mailbox: Mailbox, path: str) -> str:
    assert (await client.post(f"{AUTH}{path}", json={"email": "ada@example.com"})).status_code == 202
    return token_in(await mailbox.next())


def require_safe(response: Response) -> Page:
    """Nothing is loaded, nothing runs, nobody else hears of the token."""
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"] == (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    page = Page(response)
    assert set(page.tags) <= {
        *("html", "head", "meta", "title", "style", "body", "main", "h1", "p", "form", "input", "label", "button")
    }
    assert not [name for name, _ in page.attributes if name in {"src", "href", "style"} or name.startswith("on")]
    return page


class TestForm:
    @pytest.mark.parametrize(
        ("path", "fields"),
        [(PAGES[0], {"token": "abc.def", "password": None}), (PAGES[1], {"token": "abc.def"})],
    )
    async def test_is_sent_with_the_token_of_the_link_to_this_service(
        self, client: AsyncClient, path: str, fields: dict[str, str | None]
    ) -> None:
        response = await client.get(path, params={"token": "abc.def"})

        assert response.status_code == 200
        page = require_safe(response)
        assert (page.target, page.fields) == (f"{path}/form", fields)
        assert page.said == {}

    @pytest.mark.parametrize("path", PAGES)
    async def test_escapes_a_hostile_token(self, client: AsyncClient, path: str) -> None:
        shown = require_safe(await client.get(path, params={"token": HOSTILE}))
        form = {"token": HOSTILE, "password": NEW_PASSWORD}
        answered = require_safe(await client.post(f"{path}/form", data=form))

        assert shown.fields["token"] == HOSTILE
        assert answered.fields["token"] == HOSTILE

    @pytest.mark.parametrize("path", PAGES)
    async def test_is_there_without_a_token_too(self, client: AsyncClient, path: str) -> None:
        page = require_safe(await client.get(path))

        assert page.fields["token"] == ""

    @pytest.mark.parametrize("path", PAGES)
    async def test_says_when_the_link_is_of_no_use(self, client: AsyncClient, path: str) -> None:
        response = await client.post(f"{path}/form", data={"token": "abc.def", "password": NEW_PASSWORD})

        assert response.status_code == 401
        page = require_safe(response)
        assert page.said == {"alert": UNUSABLE}
        assert page.target == f"{path}/form"

    async def test_says_what_is_wrong_with_a_password_and_keeps_the_link(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url) as client:
            await make_user(email="ada@example.com")
            token = await mailed_token(client, mailbox, "/password/forgot")

            response = await client.post(f"{PAGES[0]}/form", data={"token": token, "password": "short"})

            assert response.status_code == 422
            page = require_safe(response)
            assert page.said == {"alert": "Use 10 to 1024 characters."}
            assert page.fields == {"token": token, "password": None}
            again = await client.post(f"{PAGES[0]}/form", data={"token": token, "password": NEW_PASSWORD})
            assert again.status_code == 200

    async def test_says_that_the_password_is_changed(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url) as client:
            await make_user(email="ada@example.com")
            token = await mailed_token(client, mailbox, "/password/forgot")

            response = await client.post(f"{PAGES[0]}/form", data={"token": token, "password": NEW_PASSWORD})

            assert response.status_code == 200
            page = require_safe(response)
            assert page.said == {"status": "Your password is changed. You can sign in with it now."}
            assert (page.target, page.fields) == (None, {})
            for password, status in ((PASSWORD, 401), (NEW_PASSWORD, 200)):
                body = {"email": "ada@example.com", "password": password}
                assert (await client.post(f"{AUTH}/login", json=body)).status_code == status

    async def test_says_that_the_address_is_verified(self, serve: Serve, mailbox: Mailbox) -> None:
        async with serve(smtp_url=mailbox.url) as client:
            ada = await make_user(email="ada@example.com")
            token = await mailed_token(client, mailbox, "/email/verify/request")

            response = await client.post(f"{PAGES[1]}/form", data={"token": token})

            assert response.status_code == 200
            assert require_safe(response).said == {"status": "Thank you. Your address is verified."}
            present = await User.get(ada.id)
            assert present is not None
            assert present.is_verified
            again = await client.post(f"{PAGES[1]}/form", data={"token": token})
            assert (again.status_code, require_safe(again).said) == (401, {"alert": UNUSABLE})

    @pytest.mark.parametrize(
        ("path", "form"),
        [
            (PAGES[0], {}),
            (PAGES[0], {"token": "x"}),
            (PAGES[0], {"token": "x" * 4097, "password": "x"}),
            (PAGES[0], {"token": "x", "password": "x" * 4097}),
            (PAGES[1], {}),
            (PAGES[1], {"token": "x" * 4097}),
        ],
    )
    async def test_refuses_what_no_page_sends(self, client: AsyncClient, path: str, form: dict[str, str]) -> None:
        response = await client.post(f"{path}/form", data=form)

        assert (response.status_code, response.json()["code"]) == (422, "validation_error")
        assert "xxxx" not in response.text

    @pytest.mark.parametrize("path", PAGES)
    async def test_costs_what_guessing_costs(self, serve: Serve, path: str) -> None:
        async with serve(rate_limit_auth="2/minute") as client:
            form = {"token": "abc.def", "password": NEW_PASSWORD}
            statuses = [(await client.post(f"{path}/form", data=form)).status_code for _ in range(3)]

        assert statuses == [401, 401, 429]
