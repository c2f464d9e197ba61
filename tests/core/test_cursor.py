import base64
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId

from app.core.cursor import decode_cursor, encode_cursor
from app.core.exceptions import InvalidCursorError
from tests.conftest import SECRET
from tests.core.active import OTHER_SECRET, activate

POSITION = [datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=UTC), ObjectId("64b7f0c2a1d3e4f5a6b7c8d9")]


@pytest.fixture(autouse=True)
def _settings() -> None:
    activate()


def refused(listing: str, cursor: str) -> str:
    with pytest.raises(InvalidCursorError) as refusal:
        decode_cursor(listing, cursor)
    return refusal.value.code


class TestCursor:
    @pytest.mark.parametrize(
        "position", [POSITION, [], ["ada@example.com"], [None, 7, True], [2**40], ["\0 ünd 漢字"], [b"\x00\xff"]]
    )
    def test_gives_back_the_position(self, position: list[Any]) -> None:
        assert decode_cursor("users", encode_cursor("users", position)) == position

    def test_fits_into_a_url_as_it_is(self) -> None:
        cursors = {encode_cursor("users", [number, "x" * number]) for number in range(50)}

        assert all(cursor.replace("-", "").replace("_", "").isalnum() for cursor in cursors)

    def test_is_refused_when_any_bit_was_changed(self) -> None:
        raw = base64.urlsafe_b64decode(encode_cursor("users", POSITION) + "==")

        for place in range(len(raw)):
            changed = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
            assert refused("users", base64.urlsafe_b64encode(changed).rstrip(b"=").decode()) == "invalid_cursor"

    @pytest.mark.parametrize("keep", [0, 1, 4, 16, 21, 22, 40, -4, -1])
    def test_is_refused_when_it_was_cut(self, keep: int) -> None:
        assert refused("users", encode_cursor("users", POSITION)[:keep]) == "invalid_cursor"

    def test_is_refused_when_something_was_added(self) -> None:
        assert refused("users", encode_cursor("users", POSITION) + "AAAA") == "invalid_cursor"

    def test_is_refused_when_two_were_joined(self) -> None:
        here, there = encode_cursor("users", [1]), encode_cursor("users", [2])

        assert refused("users", here[:22] + there[22:]) == "invalid_cursor"

    @pytest.mark.parametrize("text", ["!", "é", "not a cursor", "=", "====", "\0", "A" * 2000, "-_-_", "{}", "%24gt"])
    def test_is_refused_when_it_is_something_else(self, text: str) -> None:
        assert refused("users", text) == "invalid_cursor"

    def test_is_refused_by_another_listing(self) -> None:
        assert refused("users of ada", encode_cursor("users", POSITION)) == "invalid_cursor"

    def test_keeps_the_name_of_the_listing_apart_from_the_position(self) -> None:
        cursor = encode_cursor("users", POSITION)

        assert refused("users\0", cursor) == "invalid_cursor"

    def test_is_accepted_under_a_previous_secret(self) -> None:
        cursor = encode_cursor("users", POSITION)

        activate(secret_key=OTHER_SECRET, previous_secret_keys=[SECRET])

        assert decode_cursor("users", cursor) == POSITION

    def test_is_refused_under_a_forgotten_secret(self) -> None:
        cursor = encode_cursor("users", POSITION)

        activate(secret_key=OTHER_SECRET)

        assert refused("users", cursor) == "invalid_cursor"

    def test_is_made_under_the_current_secret(self) -> None:
        activate(secret_key=OTHER_SECRET, previous_secret_keys=[SECRET])
        cursor = encode_cursor("users", POSITION)

        activate(secret_key=OTHER_SECRET)

        assert decode_cursor("users", cursor) == POSITION
