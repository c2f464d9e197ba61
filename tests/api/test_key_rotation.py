"""A key is replaced by another without a moment in which neither works, or at once when it has leaked."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from bson import ObjectId
from httpx import AsyncClient, Response

from app.core import live_cache
from app.core.clock import utc_now
from app.core.scopes import Role
from app.models.api_key import ApiKey
from app.models.audit_event import AuditEvent
from app.models.outgoing_mail import OutgoingMail
from tests.api.test_api_keys import API_KEYS, stored, url_of, use, verdict
from tests.conftest import Serve
from tests.factories import StoredKey, make_api_key, make_signed_in, make_user
from tests.mailbox import Mailbox, text_of

HANDED_ON = ("name", "description", "scopes", "allowed_ips", "rate_limit", "owner_id", "expires_at", "is_active")


@pytest.fixture
async def master(client: AsyncClient) -> StoredKey:  # noqa: ARG001 - documents need the application's database
    return await make_api_key("admin", name="master")


async def rotate(client: AsyncClient, key: StoredKey | str, by: StoredKey | dict[str, str], **body: Any) -> Response:
    url = f"{API_KEYS}/{key}" if isinstance(key, str) else url_of(key)
    headers = by.headers if isinstance(by, StoredKey) else by
    return await client.post(f"{url}/rotate", json=body or None, headers=headers)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


class TestRotate:
    async def test_gives_a_new_key_with_the_same_properties(self, client: AsyncClient, master: StoredKey) -> None:
        key = await make_api_key(
            "items:read",
            "users:read",
            name="ci",
            owner=await make_user(),
            description="For the build",
            allowed_ips=["127.0.0.0/8"],
            rate_limit="60/minute",
            expires_at=utc_now() + timedelta(days=3),
        )
        before = (await client.get(url_of(key), headers=master.headers)).json()

        response = await rotate(client, key, master)

        new = response.json()
        assert response.status_code == 200
        assert {name: new[name] for name in HANDED_ON} == {name: before[name] for name in HANDED_ON}
        assert (new["rotated_from"], new["grace_until"]) == (before["id"], None)
        assert new["created_by"] == str(master.document.id)
        assert new["id"] != before["id"]
        assert new["key_id"] == new["key"][8:16] != before["key_id"]
        assert (await use(client, new["key"])).status_code == 200
        assert (await client.get(f"{API_KEYS}/{new['id']}", headers=master.headers)).json() == {
            name: value for name, value in new.items() if name != "key"
        }

    async def test_ends_the_old_key_at_once_unless_it_is_given_time(
        self, client: AsyncClient, master: StoredKey
    ) -> None:
        live_cache.hear(60)
        key = await make_api_key("read")
        assert (await use(client, key)).status_code == 200

        assert (await rotate(client, key, master)).status_code == 200

        assert verdict(await use(client, key)) == (401, "invalid_api_key")
        assert (await client.get(url_of(key), headers=master.headers)).json()["is_active"] is False

    async def test_lets_the_old_key_work_until_its_grace_ends(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with serve(auth_cache_seconds=0) as client:
            key, master, begun = await make_api_key("read"), await make_api_key("admin"), utc_now()

            new = (await rotate(client, key, master, grace_seconds=600)).json()

            old = (await client.get(url_of(key), headers=master.headers)).json()
            assert timedelta(seconds=599) < moment(old["grace_until"]) - begun < timedelta(seconds=610)
            assert (old["expires_at"], old["is_active"]) == (old["grace_until"], True)
            assert [(await use(client, text)).status_code for text in (key.text, new["key"])] == [200, 200]

            later = begun + timedelta(seconds=611)
            monkeypatch.setattr("app.services.auth_service.utc_now", lambda: later)
            assert verdict(await use(client, key)) == (401, "api_key_expired")
            assert (await use(client, new["key"])).status_code == 200

    async def test_remembers_the_old_key_no_longer_than_its_grace(
        self, client: AsyncClient, master: StoredKey, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        live_cache.hear(60)
        passed, key, begun = [0.0], await make_api_key("read"), utc_now()
        await rotate(client, key, master, grace_seconds=1)
        monkeypatch.setattr("app.core.live_cache.time", SimpleNamespace(monotonic=lambda: passed[0]))
        monkeypatch.setattr("app.services.auth_service.utc_now", lambda: begun + timedelta(seconds=passed[0]))

        before = await use(client, key)  # it is remembered from now on
        passed[0] = 2.0
        after = await use(client, key)

        assert (before.status_code, verdict(after)) == (200, (401, "api_key_expired"))

    async def test_gives_no_more_time_than_the_key_had(self, client: AsyncClient, master: StoredKey) -> None:
        ends_at = utc_now() + timedelta(seconds=60)
        key = await make_api_key("read", expires_at=ends_at)

        new = (await rotate(client, key, master, grace_seconds=604_800)).json()

        old = (await client.get(url_of(key), headers=master.headers)).json()
        assert [moment(shown["expires_at"]) for shown in (old, new)] == [ends_at, ends_at]

    @pytest.mark.parametrize("grace", [-1, 604_801, "long", None, 1.5])
    async def test_refuses_a_grace_that_is_none(self, client: AsyncClient, master: StoredKey, grace: Any) -> None:
        key = await make_api_key("read")

        assert verdict(await rotate(client, key, master, grace_seconds=grace)) == (422, "validation_error")
        assert (await use(client, key)).status_code == 200

    @pytest.mark.parametrize("change", [{"is_active": False}, {"expires_at": utc_now() - timedelta(seconds=1)}])
    async def test_is_not_for_a_key_that_is_over(
        self, client: AsyncClient, master: StoredKey, change: dict[str, Any]
    ) -> None:
        key = await make_api_key("read", **change)

        assert verdict(await rotate(client, key, master)) == (409, "conflict")
        assert await ApiKey.count() == 2

    async def test_is_won_by_one_of_many_at_once(self, client: AsyncClient, master: StoredKey) -> None:
        key = await make_api_key("read")

        answers = await asyncio.gather(*(rotate(client, key, master, grace_seconds=60) for _ in range(8)))

        assert sorted(verdict(answer) for answer in answers) == sorted([(200, None), *[(409, "conflict")] * 7], key=str)
        assert await ApiKey.find({"rotated_from": key.document.id}).count() == 1

    async def test_spends_the_budget_of_creating_keys(self, serve: Serve) -> None:
        async with serve(rate_limit_key_create="1/day") as client:
            ada = await make_signed_in()
            keys = [await make_api_key("read", owner=ada) for _ in range(2)]
            answers = [await rotate(client, key, ada.headers) for key in keys]

        assert [answer.status_code for answer in answers] == [200, 429]

    async def test_is_recorded_with_both_keys(self, client: AsyncClient, master: StoredKey) -> None:
        key = await make_api_key("read", name="ci")

        new = (await rotate(client, key, master, grace_seconds=7)).json()

        events = {str(event.action): event for event in await AuditEvent.find_all().to_list()}
        rotated, created = events["api_key:rotated"], events["api_key:created"]
        assert (len(events), rotated.actor.name, rotated.target.id) == (2, "master", key.document.id)
        assert rotated.details == {"successor_id": ObjectId(new["id"]), "grace_seconds": 7}
        assert (created.target.id, created.details) == (ObjectId(new["id"]), {"name": "ci", "scopes": ["read"]})


class TestRotatedKey:
    @pytest.mark.parametrize("grace", [0, 600])
    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PATCH", "", {"name": "new"}),
            ("PATCH", "", {"expires_at": None}),
            ("PATCH", "", {"is_active": True}),
            ("PATCH", "", {"is_active": False, "expires_at": None}),
            ("POST", "/activate", None),
            ("POST", "/rotate", None),
        ],
    )
    async def test_stays_as_it_is(
        self, client: AsyncClient, master: StoredKey, grace: int, method: str, path: str, body: dict[str, Any] | None
    ) -> None:
        key = await make_api_key("read")
        assert (await rotate(client, key, master, grace_seconds=grace)).status_code == 200
        before = await stored(key)

        response = await client.request(method, url_of(key) + path, json=body, headers=master.headers)

        assert verdict(response) == (409, "conflict")
        assert await stored(key) == before

    async def test_can_be_ended_early(self, client: AsyncClient, master: StoredKey) -> None:
        key = await make_api_key("read")
        await rotate(client, key, master, grace_seconds=600)

        response = await client.post(f"{url_of(key)}/deactivate", headers=master.headers)

        assert response.status_code == 200
        assert verdict(await use(client, key)) == (401, "invalid_api_key")

    async def test_makes_no_key_that_outlives_it(self, client: AsyncClient) -> None:
        ada = await make_signed_in()
        key = await make_api_key("api_keys:write", "read", owner=ada)
        assert (await rotate(client, key, ada.headers, grace_seconds=600)).status_code == 200

        made = await client.post(API_KEYS, json={"name": "heir", "scopes": ["read"]}, headers=key.headers)

        assert made.status_code == 201
        assert moment(made.json()["expires_at"]) < utc_now() + timedelta(seconds=601)

    async def test_hands_on_what_is_left_of_its_quota(self, client: AsyncClient, master: StoredKey) -> None:
        key = await make_api_key("read", quota={"limit": 5, "period": "day"})
        assert [(await use(client, key)).status_code for _ in range(2)] == [200, 200]

        new = (await rotate(client, key, master, grace_seconds=600)).json()
        assert new["quota"]["remaining"] == 3
        third = (await rotate(client, new["id"], master, grace_seconds=600)).json()

        spent = [await use(client, text) for text in (key.text, new["key"], third["key"], third["key"], key.text)]
        assert [answer.status_code for answer in spent] == [200, 200, 200, 429, 429]
        shown = await client.get(f"{API_KEYS}/{third['id']}", headers=master.headers)
        assert shown.json()["quota"]["remaining"] == 0


class TestWhoMayRotate:
    async def test_is_nobody_whose_session_ends_at_that_moment(self, client: AsyncClient) -> None:
        live_cache.hear(60)
        ada = await make_signed_in()
        key = await make_api_key("read", owner=ada)
        assert (await client.get(url_of(key), headers=ada.headers)).status_code == 200  # she is remembered
        await ada.session.delete()

        assert verdict(await rotate(client, key, ada.headers)) == (401, "token_revoked")
        assert (await use(client, key)).status_code == 200

    async def test_is_no_weaker_key(self, client: AsyncClient) -> None:
        owner = await make_user()
        maker = await make_api_key("api_keys:*", "items:read", owner=owner)
        strong = await make_api_key("items:write", owner=owner)

        assert verdict(await rotate(client, strong, maker)) == (403, "insufficient_scope")
        assert (await use(client, strong)).status_code == 200

    @pytest.mark.parametrize(
        "limits",
        [
            {"expires_at": utc_now() + timedelta(days=3)},
            {"allowed_ips": ["127.0.0.1"]},
            {"rate_limit": "60/minute"},
            {"quota": {"limit": 9, "period": "day"}},
        ],
        ids=lambda limits: next(iter(limits)),
    )
    async def test_is_no_key_that_is_more_limited(self, client: AsyncClient, limits: dict[str, Any]) -> None:
        limited, free = await make_api_key("admin", **limits), await make_api_key("read")
        alike = await make_api_key("read", **limits)

        assert verdict(await rotate(client, free, limited)) == (403, "forbidden")
        assert (await use(client, free)).status_code == 200
        assert (await rotate(client, alike, limited)).status_code == 200

    @pytest.mark.parametrize(
        ("owner", "status"), [(Role.USER, 200), (Role.SUPPORT, 200), (Role.ADMIN, 403), (Role.SUPERUSER, 403)]
    )
    @pytest.mark.parametrize("caller", ["administrator", "service"])
    async def test_is_nobody_of_no_higher_rank_than_the_owner(
        self, client: AsyncClient, owner: Role, status: int, caller: str
    ) -> None:
        admin, master = await make_signed_in(role=Role.ADMIN), await make_api_key("admin")
        key = await make_api_key("read", owner=await make_user(role=owner))

        answer = await rotate(client, key, admin.headers if caller == "administrator" else master)

        assert answer.status_code == status
        assert (await use(client, key)).status_code == (401 if status == 200 else 200)

    async def test_is_the_owner_whatever_its_rank(self, client: AsyncClient) -> None:
        admin = await make_signed_in(role=Role.ADMIN)
        keys = [await make_api_key("admin", owner=admin) for _ in range(3)]

        answers = [await rotate(client, keys[0], admin.headers), await rotate(client, keys[1], keys[2])]

        assert [answer.status_code for answer in answers] == [200, 200]

    async def test_is_not_the_key_itself(self, client: AsyncClient, master: StoredKey) -> None:
        response = await rotate(client, master, master)

        assert verdict(response) == (400, "invalid_request")
        assert "currently using" in response.json()["detail"]


class TestMail:
    @pytest.fixture
    async def client(self, serve: Serve, mailbox: Mailbox) -> AsyncIterator[AsyncClient]:
        async with serve(smtp_url=mailbox.url) as client:
            yield client

    @pytest.mark.parametrize(
        ("grace", "said"), [(0, "The old one does not work any more."), (9, "The old one works for a while still.")]
    )
    @pytest.mark.parametrize("caller", ["owner", "administrator", "key"])
    async def test_tells_the_owner(
        self, client: AsyncClient, mailbox: Mailbox, grace: int, said: str, caller: str
    ) -> None:
        ada, root = await make_signed_in(), await make_signed_in(role=Role.ADMIN)
        key, other = [await make_api_key("api_keys:*", "read", owner=ada, name=name) for name in ("ci", "other")]

        headers = {"owner": ada.headers, "administrator": root.headers, "key": other.headers}[caller]
        new = (await rotate(client, key, headers, grace_seconds=grace)).json()

        mail = await mailbox.next("An API key was replaced")
        assert mail["To"] == ada.document.email
        assert "\u201cci\u201d" in text_of(mail)
        assert said in text_of(mail)
        assert new["key"] not in mail.as_string()

    async def test_is_not_for_service_keys(self, client: AsyncClient) -> None:
        admin, service = await make_signed_in(role=Role.ADMIN), await make_api_key("read")

        assert (await rotate(client, service, admin.headers)).status_code == 200

        assert await OutgoingMail.count() == 0
