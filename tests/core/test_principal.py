from dataclasses import FrozenInstanceError

import pytest
from bson import ObjectId

from app.core.exceptions import ForbiddenError
from app.core.principal import ANONYMOUS, Principal, PrincipalKind
from app.core.scopes import Grant, Role, Scope, expand, grant_of
from tests.core.active import activate

USER, SESSION, KEY = ObjectId(), ObjectId(), ObjectId()
NOTHING = Grant(own=frozenset(), others=frozenset())


@pytest.fixture(autouse=True)
def _settings() -> None:
    activate()


def user(role: Role = Role.USER) -> Principal:
    return Principal.of_user(USER, name="ada", role=role, session_id=SESSION)


def service_key(*names: str) -> Principal:
    scopes = expand(names)
    return Principal(PrincipalKind.API_KEY, "ci", Grant(own=scopes, others=scopes), credential_id=KEY)


def personal_key(*names: str) -> Principal:
    grant = grant_of(Role.USER).limited_to(expand(names))
    return Principal(PrincipalKind.API_KEY, "phone", grant, user_id=USER, credential_id=KEY, role=Role.USER)


class TestIdentity:
    def test_of_a_user_is_the_user(self) -> None:
        assert (user().kind, user().id, user().account_id, user().session_id) == ("user", USER, USER, SESSION)

    def test_of_a_service_key_is_the_key(self) -> None:
        assert (service_key("read").id, service_key("read").user_id) == (KEY, None)

    def test_of_a_personal_key_is_the_key_acting_for_its_owner(self) -> None:
        assert (personal_key("read").id, personal_key("read").account_id) == (KEY, USER)

    def test_of_nobody_is_nothing(self) -> None:
        assert (ANONYMOUS.kind, ANONYMOUS.id, ANONYMOUS.scopes) == ("anonymous", None, frozenset())

    def test_can_not_be_changed(self) -> None:
        with pytest.raises(FrozenInstanceError):
            user().role = Role.SUPERUSER  # type: ignore[misc]

    def test_has_its_own_budget_of_requests(self) -> None:
        keys = {user().rate_key, personal_key("read").rate_key, ANONYMOUS.rate_key}

        assert len(keys) == 3
        assert service_key("read").rate_key == service_key("write").rate_key


class TestRefusals:
    @pytest.mark.parametrize("principal", [service_key("admin"), ANONYMOUS])
    def test_has_no_account_without_a_user(self, principal: Principal) -> None:
        with pytest.raises(ForbiddenError) as refusal:
            _ = principal.account_id

        assert refusal.value.code == "forbidden"

    @pytest.mark.parametrize("principal", [service_key("admin"), personal_key("read"), ANONYMOUS])
    def test_has_no_session_without_signing_in(self, principal: Principal) -> None:
        with pytest.raises(ForbiddenError) as refusal:
            _ = principal.session_id

        assert refusal.value.code == "forbidden"


class TestReach:
    def test_of_a_user_ends_at_its_own(self) -> None:
        assert not user().reaches_all(Scope.CONVERSATIONS_READ)
        assert user().owner_filter(Scope.CONVERSATIONS_READ) == USER

    def test_of_an_administrator_has_no_end(self) -> None:
        assert user(Role.ADMIN).reaches_all(Scope.API_KEYS_WRITE)
        assert user(Role.ADMIN).owner_filter(Scope.API_KEYS_WRITE) is None

    def test_of_support_is_all_users_and_its_own_of_the_rest(self) -> None:
        assert user(Role.SUPPORT).owner_filter(Scope.USERS_READ) is None
        assert user(Role.SUPPORT).owner_filter(Scope.CONVERSATIONS_READ) == USER

    def test_of_a_service_key_ends_at_its_scopes(self) -> None:
        key = service_key("conversations:read")

        assert key.owner_filter(Scope.CONVERSATIONS_READ) is None
        assert not key.reaches_all(Scope.CONVERSATIONS_WRITE)
        assert {*key.scopes} == {"conversations:read"}

    def test_of_a_personal_key_is_never_wider_than_its_owner(self) -> None:
        key = personal_key("admin")

        assert Scope.ADMIN not in key.scopes
        assert key.owner_filter(Scope.USERS_READ) == USER

    def test_of_the_operator_is_everything(self) -> None:
        operator = Principal.system("create_superuser")

        assert operator.reaches_all(Scope.ADMIN)
        assert (operator.kind, operator.name, operator.role) == ("system", "create_superuser", "superuser")


class TestRank:
    @pytest.mark.parametrize(("lower", "higher"), [("guest", "user"), ("user", "support"), ("admin", "superuser")])
    def test_of_a_user_is_that_of_its_role(self, lower: str, higher: str) -> None:
        assert user(Role(lower)).rank < user(Role(higher)).rank

    def test_of_an_administrators_key_is_below_a_superuser(self) -> None:
        assert service_key("admin").rank == user(Role.ADMIN).rank < user(Role.SUPERUSER).rank

    def test_of_any_other_service_key_is_below_an_administrator(self) -> None:
        assert service_key("read", "write", "api_keys:*").rank < user(Role.ADMIN).rank

    def test_of_a_personal_key_is_its_owners(self) -> None:
        assert personal_key("admin").rank == user().rank
