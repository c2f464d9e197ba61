import re
import string

import pytest

from app.core.key_format import new_key, parse

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
BODY = "octopus_Ab3dEf9H_0123456789abcdefghijABCDEFGHIJKL"
KEY = "octopus_Ab3dEf9H_0123456789abcdefghijABCDEFGHIJKL0qpSxx"


def crc_32(data: bytes) -> int:
    """The checksum of ISO 3309, bit by bit."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0xEDB88320 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def with_checksum(body: str) -> str:
    value = crc_32(body.encode())
    return body + "".join(DIGITS[value // 62**place % 62] for place in (5, 4, 3, 2, 1, 0))


class TestNewKey:
    def test_reads_as_it_is_published(self) -> None:
        assert re.fullmatch(r"octopus_[0-9A-Za-z]{8}_[0-9A-Za-z]{38}", new_key().text)

    def test_shows_its_id_in_clear(self) -> None:
        key = new_key()

        assert key.text.split("_")[1] == key.key_id

    def test_can_be_parsed(self) -> None:
        keys = [new_key() for _ in range(200)]

        assert [parse(key.text) for key in keys] == keys

    def test_ends_with_the_published_checksum(self) -> None:
        key = new_key().text

        assert key == with_checksum(key[:-6])

    def test_is_never_the_same(self) -> None:
        assert len({new_key().text for _ in range(1000)}) == 1000


class TestParse:
    def test_knows_a_key_that_was_made_elsewhere(self) -> None:
        assert with_checksum(BODY) == KEY

        assert parse(KEY) == ("Ab3dEf9H", KEY)

    def test_pads_a_small_checksum_with_zeros(self) -> None:
        bodies = (f"octopus_Ab3dEf9H_{number:032d}" for number in range(100_000))
        key = next(key for key in map(with_checksum, bodies) if key[-6:-4] == "00")

        assert parse(key) is not None

    @pytest.mark.parametrize("position", range(len(KEY)))
    def test_refuses_a_change_of_any_one_character(self, position: int) -> None:
        changed = [KEY[:position] + other + KEY[position + 1 :] for other in string.printable if other != KEY[position]]

        assert [text for text in changed if parse(text)] == []

    @pytest.mark.parametrize("position", range(len(KEY)))
    def test_refuses_a_missing_or_doubled_character(self, position: int) -> None:
        assert parse(KEY[:position] + KEY[position + 1 :]) is None
        assert parse(KEY[:position] + KEY[position] + KEY[position:]) is None

    @pytest.mark.parametrize("position", [8, 9, 14, 17, 25, 40, 48, 52])
    def test_refuses_two_neighbours_that_changed_places(self, position: int) -> None:
        left, right = KEY[position], KEY[position + 1]
        assert left != right

        assert parse(KEY[:position] + right + left + KEY[position + 2 :]) is None

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "octopus",
            "octopus__",
            KEY + "\n",
            " " + KEY,
            KEY + KEY,
            KEY.replace("_", "-"),
            with_checksum(BODY.replace("octopus", "kraken0")),
            with_checksum(BODY + "M"),
            with_checksum(BODY[:-1]),
            with_checksum(BODY.replace("0123", "01٢3")),
            with_checksum(BODY.replace("0123", "01_3")),
            "\0" * 55,
            "x" * 100_000,
        ],
    )
    def test_refuses_another_shape_whatever_its_checksum(self, text: str) -> None:
        assert parse(text) is None
