import base64
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree as ET

import pytest
from bson import ObjectId

from app.core.totp import (
    matching_step,
    new_recovery_codes,
    new_secret,
    otpauth_uri,
    qr_svg,
    recovery_digests,
)
from tests.conftest import SECRET
from tests.core.active import OTHER_SECRET, activate

# RFC 6238, appendix B: the secret of SHA-1, and of each 8-digit code the six digits that phones show.
RFC_SECRET = base64.b32encode(b"12345678901234567890").decode()
RFC_CODES = [
    (59, "287082"),
    (1111111109, "081804"),
    (1111111111, "050471"),
    (1234567890, "005924"),
    (2000000000, "279037"),
    (20000000000, "353130"),
]
USER = ObjectId("6746d0a8f8f8f8f8f8f8f8f8")
OTHER_USER = ObjectId("6746d0a8f8f8f8f8f8f8f8f9")

SetTime = Callable[[float], None]


@pytest.fixture
def set_time(monkeypatch: pytest.MonkeyPatch) -> SetTime:
    """Let it be so many seconds after the epoch."""

    def be(seconds: float) -> None:
        monkeypatch.setattr(
            "app.core.totp.utc_now", lambda: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
        )

    return be


class TestMatchingStep:
    @pytest.mark.parametrize(("seconds", "code"), RFC_CODES)
    def test_knows_the_codes_of_rfc_6238(self, set_time: SetTime, seconds: int, code: str) -> None:
        set_time(seconds)

        assert matching_step(RFC_SECRET, code) == seconds // 30

    @pytest.mark.parametrize(
        ("offset", "step"), [(-61, None), (-60, None), (-30, 41152263), (0, 41152263), (30, 41152263), (60, None)]
    )
    def test_forgives_one_step_either_way(self, set_time: SetTime, offset: int, step: int | None) -> None:
        set_time(1234567890 + offset)

        assert matching_step(RFC_SECRET, "005924") == step

    def test_counts_a_step_from_its_first_second_to_its_last(self, set_time: SetTime) -> None:
        found = []
        for seconds in (1234567889.999, 1234567890, 1234567919.999, 1234567949.999, 1234567950):
            set_time(seconds)
            found.append(matching_step(RFC_SECRET, "005924"))

        assert found == [41152263, 41152263, 41152263, 41152263, None]

    @pytest.mark.parametrize(
        "code", ["", "5924", "0005924", "005925", "005 924", "٠٠٥٩٢٤", "00592é", "005924\n", "89005924"]
    )
    def test_knows_nothing_else(self, set_time: SetTime, code: str) -> None:
        set_time(1234567890)

        assert matching_step(RFC_SECRET, code) is None


class TestNewSecret:
    def test_is_160_random_bits_in_base32(self) -> None:
        secrets = {new_secret() for _ in range(50)}

        assert len(secrets) == 50
        assert {len(base64.b32decode(secret)) for secret in secrets} == {20}


class TestOtpauthUri:
    def test_names_issuer_and_account(self) -> None:
        activate(jwt_issuer="Harbour & Sons")

        link = urlsplit(otpauth_uri(RFC_SECRET, "ada+tea@example.com"))

        assert (link.scheme, link.netloc) == ("otpauth", "totp")
        assert unquote(link.path) == "/Harbour & Sons:ada+tea@example.com"
        assert parse_qs(link.query) == {"secret": [RFC_SECRET], "issuer": ["Harbour & Sons"]}


class TestQrSvg:
    def test_is_a_picture_of_its_own_without_script(self) -> None:
        root = ET.fromstring(qr_svg("otpauth://totp/octopus:ada@example.com?secret=AAAA"))  # noqa: S314 - our own

        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert int(root.attrib["width"]) > 100
        assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {"svg", "title", "path", "g"}

    def test_shows_the_text_only_in_the_code(self) -> None:
        assert "AAAA" not in qr_svg("otpauth://totp/octopus:ada@example.com?secret=AAAA")

    def test_is_another_for_another_text(self) -> None:
        assert qr_svg("otpauth://totp/a?secret=AAAA") != qr_svg("otpauth://totp/a?secret=AAAB")

    def test_takes_the_longest_address(self) -> None:
        activate()
        uri = otpauth_uri(new_secret(), "ü" * 64 + "@" + "a" * 250 + ".example.com")

        assert qr_svg(uri).startswith("<svg")


class TestRecoveryCodes:
    def test_are_ten_that_are_easy_to_copy(self) -> None:
        codes = [code for _ in range(20) for code in new_recovery_codes()]

        assert len(set(codes)) == len(codes) == 200
        assert all(re.fullmatch("[2-9a-hjkmnp-z]{6}-[2-9a-hjkmnp-z]{6}", code) for code in codes)

    def test_use_all_their_letters(self) -> None:
        used = set("".join("".join(new_recovery_codes()) for _ in range(50)))

        assert used == set("23456789abcdefghjkmnpqrstuvwxyz-")


class TestRecoveryDigests:
    @pytest.mark.parametrize("written", ["AB2CD3-EF4GH5", "ab2cd3ef4gh5", " ab2cd3 ef4gh5 ", "ab2-cd3-ef4-gh5"])
    def test_are_the_same_however_people_write_it(self, written: str) -> None:
        activate()

        assert recovery_digests(USER, written) == recovery_digests(USER, "ab2cd3-ef4gh5")

    @pytest.mark.parametrize("other", ["ab2cd3-ef4gh6", "ab2cd3-ef4gh", "", "ef4gh5-ab2cd3"])
    def test_are_others_for_another_code(self, other: str) -> None:
        activate()

        assert not set(recovery_digests(USER, other)) & set(recovery_digests(USER, "ab2cd3-ef4gh5"))

    def test_are_others_for_another_user(self) -> None:
        activate()

        assert not set(recovery_digests(OTHER_USER, "ab2cd3-ef4gh5")) & set(recovery_digests(USER, "ab2cd3-ef4gh5"))

    def test_hold_the_digest_under_each_previous_secret(self) -> None:
        activate(secret_key=SECRET)
        (stored,) = recovery_digests(USER, "ab2cd3-ef4gh5")

        activate(secret_key=OTHER_SECRET, previous_secret_keys=[SECRET])
        present, previous = recovery_digests(USER, "AB2CD3EF4GH5")

        assert previous == stored
        assert present != stored
        assert len(stored) == 32

    def test_can_not_be_made_without_the_secret(self) -> None:
        activate(secret_key=SECRET)
        stored = recovery_digests(USER, "ab2cd3-ef4gh5")
        activate(secret_key=OTHER_SECRET)

        assert not set(recovery_digests(USER, "ab2cd3-ef4gh5")) & set(stored)
