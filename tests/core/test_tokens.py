import base64
import hashlib
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from bson import ObjectId

from app.core.clock import utc_now
from app.core.exceptions import InvalidTokenError, TokenExpiredError
from app.core.principal import Principal
from app.core.scopes import Role
from app.core.tokens import RefreshToken, new_access_token, read_access_token, refresh_life, session_life
from tests.conftest import SECRET
from tests.core.active import OTHER_SECRET, activate

USER, SESSION = ObjectId("64b7f0c2a1d3e4f5a6b7c8d9"), ObjectId("64b7f0c2a1d3e4f5a6b7c8e0")


def principal(role: Role = Role.USER) -> Principal:
    return Principal.of_user(USER, name="ada", role=role, session_id=SESSION)


def chain(length: int, start: RefreshToken | None = None) -> list[RefreshToken]:
    """A refresh token and those that follow it."""
    tokens = [start or RefreshToken.new(SESSION)]
    while len(tokens) < length:
        tokens.append(tokens[-1].successors()[0])
    return tokens


def signed(secret: str = SECRET, algorithm: str = "HS256", without: str = "", **claims: Any) -> str:
    """A token made by other hands, good but for what is said."""
    now = int(time.time())
    good = {
        "sub": str(USER),
        "sid": str(SESSION),
        "jti": "one",
        "role": "user",
        "scope": "users:read",
        "iat": now,
        "nbf": now,
        "exp": now + 60,
        "iss": "octopus",
        "aud": "octopus",
    }
    chosen = {name: value for name, value in {**good, **claims}.items() if name != without}
    return jwt.encode(chosen, secret, algorithm)


class TestNewAccessToken:
    def test_carries_the_published_claims(self) -> None:
        activate(jwt_issuer="harbour", jwt_audience="ships", access_token_expire_minutes=7)

        token, life = new_access_token(principal())

        claims = jwt.decode(token, SECRET, ["HS256"], issuer="harbour", audience="ships")
        assert claims.keys() == {"sub", "sid", "jti", "role", "scope", "iat", "nbf", "exp", "iss", "aud"}
        assert (claims["sub"], claims["sid"], claims["role"]) == (str(USER), str(SESSION), "user")
        assert (claims["exp"] - claims["iat"], life) == (420, 420)
        assert claims["iat"] - claims["nbf"] == 5  # a host whose clock is a little behind takes it at once

    def test_is_never_the_same(self) -> None:
        activate()

        assert new_access_token(principal()) != new_access_token(principal())

    @pytest.mark.parametrize(
        ("role", "scope"),
        [
            (Role.GUEST, "conversations:read items:read uploads:read users:read"),
            (
                Role.USER,
                (
                    "api_keys:read api_keys:write conversations:read conversations:write "
                    "items:read items:write uploads:read uploads:write users:read users:write"
                ),
            ),
        ],
    )
    def test_says_what_the_role_may_ask_for(self, role: Role, scope: str) -> None:
        activate()

        token, _ = new_access_token(principal(role))

        assert jwt.decode(token, options={"verify_signature": False})["scope"] == scope


class TestReadAccessToken:
    def test_takes_a_token_of_a_host_whose_clock_is_ahead(self) -> None:
        activate()
        now = int(time.time())

        assert read_access_token(signed(iat=now + 4, nbf=now - 1)).user_id == USER

    def test_gives_back_who_it_was_made_for(self) -> None:
        activate(access_token_expire_minutes=10)

        token = read_access_token(new_access_token(principal())[0])

        assert (token.user_id, token.session_id) == (USER, SESSION)
        assert abs(token.expires_at - datetime.now(UTC) - timedelta(minutes=10)) < timedelta(seconds=5)

    def test_accepts_what_a_previous_secret_signed(self) -> None:
        activate(secret_key=OTHER_SECRET, previous_secret_keys=[SECRET])

        assert read_access_token(signed(SECRET)).session_id == SESSION

    def test_signs_with_the_current_secret(self) -> None:
        activate(secret_key=OTHER_SECRET, previous_secret_keys=[SECRET])

        token, _ = new_access_token(principal())

        assert jwt.decode(token, OTHER_SECRET, ["HS256"], audience="octopus")["sid"] == str(SESSION)

    def test_refuses_what_a_forgotten_secret_signed(self) -> None:
        activate(secret_key=OTHER_SECRET)

        with pytest.raises(InvalidTokenError):
            read_access_token(signed(SECRET))

    @pytest.mark.parametrize("secret", [SECRET, OTHER_SECRET])
    def test_says_when_it_has_expired(self, secret: str) -> None:
        activate(previous_secret_keys=[OTHER_SECRET])

        with pytest.raises(TokenExpiredError) as refusal:
            read_access_token(signed(secret, exp=int(time.time()) - 1))

        assert refusal.value.code == "token_expired"

    @pytest.mark.parametrize(
        "fault",
        [
            {"iss": "elsewhere"},
            {"aud": "elsewhere"},
            {"nbf": int(time.time()) + 3600},
            {"sub": "nobody"},
            {"sid": "x" * 24},
        ],
    )
    def test_refuses_what_this_service_would_not_sign(self, fault: dict[str, Any]) -> None:
        activate()

        with pytest.raises(InvalidTokenError) as refusal:
            read_access_token(signed(**fault))

        assert refusal.value.code == "invalid_token"

    @pytest.mark.parametrize("claim", ["sub", "sid", "jti", "role", "scope", "iat", "nbf", "exp", "iss", "aud"])
    def test_refuses_a_token_without_a_claim(self, claim: str) -> None:
        activate()

        with pytest.raises(InvalidTokenError):
            read_access_token(signed(without=claim))

    @pytest.mark.parametrize("text", ["", "a.b.c", "x", "é", "." * 1000, "eyJhbGciOiJub25lIn0.e30."])
    def test_refuses_what_is_no_token(self, text: str) -> None:
        activate()

        with pytest.raises(InvalidTokenError):
            read_access_token(text)

    @pytest.mark.parametrize(("secret", "algorithm"), [("", "none"), (SECRET * 2, "HS384"), (SECRET * 2, "HS512")])
    def test_refuses_every_algorithm_but_its_own(self, secret: str, algorithm: str) -> None:
        activate(secret_key=SECRET * 2)
        assert read_access_token(signed(SECRET * 2))

        with pytest.raises(InvalidTokenError):
            read_access_token(signed(secret, algorithm))


class TestRefreshToken:
    def test_holds_256_random_bits(self) -> None:
        tokens = {RefreshToken.new(SESSION).secret for _ in range(100)}

        assert len(tokens) == 100
        assert {len(base64.urlsafe_b64decode(secret + "=")) for secret in tokens} == {32}

    def test_can_be_parsed(self) -> None:
        token = RefreshToken.new(SESSION)

        assert RefreshToken.parse(str(token)) == token

    def test_is_stored_as_a_plain_hash(self) -> None:
        token = RefreshToken.new(SESSION)

        assert token.digest == hashlib.sha256(token.secret.encode()).digest()

    @pytest.mark.parametrize(
        "text",
        ["", ".", f"{SESSION}", f"{SESSION}.", f"{SESSION}.short", f"x{SESSION}.{'a' * 43}", f"{SESSION}.{'é' * 43}"],
    )
    def test_is_nothing_in_another_shape(self, text: str) -> None:
        assert RefreshToken.parse(text) is None


class TestSuccessors:
    def test_are_the_same_each_time(self) -> None:
        activate()
        token = RefreshToken.new(SESSION)

        assert token.successors() == token.successors()

    def test_look_like_any_refresh_token(self) -> None:
        activate()

        (successor,) = RefreshToken.new(SESSION).successors()

        assert RefreshToken.parse(str(successor)) == successor

    def test_can_not_be_known_without_the_secret(self) -> None:
        activate()
        token = RefreshToken.new(SESSION)
        ours = token.successors()

        activate(secret_key=OTHER_SECRET)

        assert token.successors() != ours

    def test_differ_between_sessions(self) -> None:
        activate()
        token = RefreshToken.new(SESSION)
        twin = RefreshToken(ObjectId(), token.secret)

        assert twin.successors()[0].secret != token.successors()[0].secret

    def test_are_made_under_previous_secrets_too(self) -> None:
        activate()
        token = RefreshToken.new(SESSION)
        before = token.successors()

        activate(secret_key=OTHER_SECRET, previous_secret_keys=[SECRET])

        assert token.successors()[1:] == before
        assert token.successors()[0] not in before


class TestPrecedes:
    @pytest.mark.parametrize("distance", [1, 2, 3, 10])
    def test_is_true_from_that_many_steps_on(self, distance: int) -> None:
        activate()
        tokens = chain(distance + 1)

        assert tokens[0].precedes(tokens[-1].digest, within=distance)
        assert tokens[0].precedes(tokens[-1].digest, within=distance + 5)
        assert not tokens[0].precedes(tokens[-1].digest, within=distance - 1)

    def test_is_false_for_itself_and_for_what_came_before(self) -> None:
        activate()
        first, second, third = chain(3)

        assert not third.precedes(first.digest, within=50)
        assert not second.precedes(second.digest, within=50)

    def test_is_false_for_a_stranger(self) -> None:
        activate()

        assert not RefreshToken.new(SESSION).precedes(RefreshToken.new(SESSION).digest, within=50)

    def test_survives_a_rotation_of_the_secret(self) -> None:
        activate()
        first, second = chain(2)

        activate(secret_key=OTHER_SECRET, previous_secret_keys=[SECRET])

        assert first.precedes(second.digest, within=1)
        assert second.precedes(chain(3, second)[-1].digest, within=2)


def test_refresh_token_lives_for_the_configured_days() -> None:
    activate(refresh_token_expire_days=12)

    assert refresh_life() == timedelta(days=12)


def test_session_lives_for_the_configured_days() -> None:
    activate(session_max_days=400)

    assert session_life() == timedelta(days=400)


@pytest.mark.parametrize(("minutes_left", "minutes"), [(29, 29), (31, 30)])
def test_access_token_does_not_outlive_its_session(minutes_left: int, minutes: int) -> None:
    activate()

    token, life = new_access_token(principal(), session_ends_at=utc_now() + timedelta(minutes=minutes_left))

    assert minutes * 60 - 2 <= life <= minutes * 60
    assert abs((read_access_token(token).expires_at - utc_now()).total_seconds() - minutes * 60) <= 2
