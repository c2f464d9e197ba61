import pytest

from app.core.byte_range import wanted_range
from app.core.exceptions import RangeNotSatisfiableError


class TestWantedRange:
    @pytest.mark.parametrize(
        ("header", "wanted"),
        [
            ("bytes=0-0", (0, 0)),
            ("bytes=2-5", (2, 5)),
            ("bytes=2-", (2, 9)),
            ("bytes=-3", (7, 9)),
            ("bytes=9-9", (9, 9)),
            ("bytes=0-10", (0, 9)),
            ("bytes=5-99999999999999999999999999", (5, 9)),
            ("bytes=-99999999999999999999999999", (0, 9)),
            ("Bytes= 1-2 ", (1, 2)),
        ],
    )
    def test_is_cut_to_what_there_is(self, header: str, wanted: tuple[int, int]) -> None:
        assert wanted_range(header, 10) == wanted

    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=1-2x",
            "bytes=5-2",
            "bytes=--5",
            "bytes=0x1-2",
            "bytes=1-2,4-5",
            "bytes=\u0661-\u0662",
            "lines=1-2",
        ],
    )
    def test_is_the_whole_where_it_makes_no_sense_or_is_several(self, header: str | None) -> None:
        assert wanted_range(header, 10) is None

    @pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0", "bytes=99999999999999999999999999-"])
    def test_behind_the_end_can_not_be_given(self, header: str) -> None:
        with pytest.raises(RangeNotSatisfiableError) as refusal:
            wanted_range(header, 10)

        assert refusal.value.size == 10

    def test_of_an_empty_file_can_not_be_given(self) -> None:
        with pytest.raises(RangeNotSatisfiableError):
            wanted_range("bytes=-5", 0)
