import pytest

from app.core.server_sent_events import EventReader, ServerEvent

STREAM = 'data: {"a": "Grüße 🐙"}\n\nevent: end\ndata: one\ndata: two\n\n: a comment\n\ndata:\n\ndata: unfinished\n'
EVENTS = [ServerEvent("message", '{"a": "Grüße 🐙"}'), ServerEvent("end", "one\ntwo"), ServerEvent("message", "")]


def read(content: bytes, size: int, most: int = 1000) -> list[ServerEvent]:
    reader = EventReader(most)
    return [event for at in range(0, len(content), size) for event in reader.feed(content[at : at + size])]


class TestEvents:
    @pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
    @pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
    def test_are_the_same_whatever_the_pieces_and_the_ends_of_lines(self, end: str, size: int) -> None:
        assert read(STREAM.replace("\n", end).encode(), size) == EVENTS

    @pytest.mark.parametrize("size", [1, 2, 100])
    def test_may_follow_a_byte_order_mark(self, size: int) -> None:
        assert read(b"\xef\xbb\xbfdata: x\n\n", size) == [("message", "x")]

    def test_lose_one_space_and_no_more(self) -> None:
        assert read(b"data:  x \n\ndata:y\n\n", 100) == [("message", " x "), ("message", "y")]

    def test_pass_over_fields_that_mean_nothing_here(self) -> None:
        assert read(b"id: 7\nretry: 5\nnonsense\ndata: x\n\n", 100) == [("message", "x")]

    def test_are_none_without_data(self) -> None:
        assert read(b"event: ping\n\ndata: x\n\n", 100) == [("message", "x")]

    @pytest.mark.parametrize("content", [b"x" * 101, b"data: 123456789\n" * 12, b"data\n" * 102])
    @pytest.mark.parametrize("size", [1, 7, 1000])
    def test_are_refused_when_one_is_too_long(self, content: bytes, size: int) -> None:
        with pytest.raises(ValueError, match="too long"):
            read(content, size, most=100)

    def test_together_may_be_longer_than_one_may_be(self) -> None:
        assert len(read(b"data: 123456789\n\n" * 100, 64, most=100)) == 100

    def test_are_refused_when_they_are_no_text(self) -> None:
        with pytest.raises(UnicodeDecodeError):
            read(b"data: \xff\n\n", 100)
