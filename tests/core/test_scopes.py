import pytest

from app.core.scopes import SCOPES_OF_NAME, Grant, Role, Scope, expand, grant_of

FINER = {
    "users:read",
    "users:write",
    "conversations:read",
    "conversations:write",
    "items:read",
    "items:write",
    "uploads:read",
    "uploads:write",
    "api_keys:read",
    "api_keys:write",
    "audit:read",
    "usage:write",
    "tokens:introspect",
}
STAFF = {"staff:view", "staff:assist", "staff:manage"}
OWN_DATA = {name for name in FINER if name.partition(":")[0] in {"users", "conversations", "items", "uploads"}}


class TestVocabulary:
    def test_is_the_published_one(self) -> None:
        assert SCOPES_OF_NAME.keys() == FINER | {
            *("read", "write", "admin"),
            *("users:*", "conversations:*", "items:*", "uploads:*", "api_keys:*"),
        }

    def test_has_every_scope_once(self) -> None:
        assert {scope.value for scope in Scope} == FINER | STAFF | {"admin"}

    def test_has_no_name_for_what_staff_does_in_person(self) -> None:
        assert not SCOPES_OF_NAME.keys() & STAFF


class TestExpand:
    @pytest.mark.parametrize(
        ("names", "scopes"),
        [
            ([], set()),
            (["users:read"], {"users:read"}),
            (["items:*"], {"items:read", "items:write"}),
            (["api_keys:*", "users:read"], {"api_keys:read", "api_keys:write", "users:read"}),
            (["read"], {"users:read", "conversations:read", "items:read", "uploads:read"}),
            (["write"], {"users:write", "conversations:write", "items:write", "uploads:write"}),
            (["read", "write"], OWN_DATA),
            (["admin"], FINER | STAFF | {"admin"}),
            (["usage:write", "tokens:introspect"], {"usage:write", "tokens:introspect"}),
        ],
    )
    def test_is_what_the_names_stand_for(self, names: list[str], scopes: set[str]) -> None:
        assert {scope.value for scope in expand(names)} == scopes

    @pytest.mark.parametrize("name", ["", "*", "all", "Read", "users", "users:delete", "audit:*", "usage:*", "admin:*"])
    def test_refuses_a_name_outside_the_vocabulary(self, name: str) -> None:
        with pytest.raises(KeyError):
            expand(["read", name])

    @pytest.mark.parametrize("name", ["read", "write"])
    @pytest.mark.parametrize("resource", ["api_keys", "audit", "usage", "tokens", "admin"])
    def test_keeps_credentials_and_records_out_of_everyday_names(self, name: str, resource: str) -> None:
        assert not [scope for scope in expand([name]) if scope.partition(":")[0] == resource]

    def test_does_not_let_write_imply_read(self) -> None:
        assert not expand(["write"]) & expand(["read"])


class TestRoles:
    def test_are_ranked_from_guest_to_superuser(self) -> None:
        assert sorted(Role, key=lambda role: role.rank) == ["guest", "user", "support", "admin", "superuser"]
        assert len({role.rank for role in Role}) == 5

    @pytest.mark.parametrize(
        ("role", "own", "others"),
        [
            ("guest", {"users:read", "conversations:read", "items:read", "uploads:read"}, set()),
            ("user", OWN_DATA | {"api_keys:read", "api_keys:write"}, set()),
            ("support", OWN_DATA | {"api_keys:read", "api_keys:write"}, {"users:read", "staff:view"}),
            ("admin", FINER | STAFF | {"admin"}, FINER | STAFF | {"admin"}),
            ("superuser", FINER | STAFF | {"admin"}, FINER | STAFF | {"admin"}),
        ],
    )
    def test_hold_what_is_published(self, role: str, own: set[str], others: set[str]) -> None:
        grant = grant_of(Role(role))

        assert ({*grant.own}, {*grant.others}) == (own, others)

    @pytest.mark.parametrize(
        ("level", "scopes"),
        [
            (None, {"staff:view"}),
            (1, {"staff:view"}),
            (2, {"staff:view", "staff:assist"}),
            (3, {"staff:view", "staff:assist", "staff:manage"}),
        ],
    )
    def test_of_staff_hold_more_with_each_level(self, level: int | None, scopes: set[str]) -> None:
        assert {scope.value for scope in grant_of(Role.SUPPORT, level).others} == scopes | {"users:read"}

    def test_other_than_staff_hold_nothing_by_a_level(self) -> None:
        assert grant_of(Role.USER, 3) == grant_of(Role.USER)


def test_grant_is_limited_on_both_sides() -> None:
    grant = Grant(own=expand(["read", "write"]), others=expand(["users:read", "admin"]))

    limited = grant.limited_to(expand(["users:*"]))

    assert {*limited.own} == {"users:read", "users:write"}
    assert {*limited.others} == {"users:read", "users:write"}
