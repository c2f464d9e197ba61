import io
import os

import pytest

from app.core.log_stream import LogStream


class TestLogStream:
    def test_writes_through(self) -> None:
        text = io.StringIO()
        stream = LogStream(text)

        stream.write("a line\n")
        stream.flush()

        assert text.getvalue() == "a line\n"

    @pytest.mark.parametrize("way", ["unread", "full", "closed"])
    def test_goes_on_when_nothing_can_be_written(self, way: str) -> None:
        if way == "unread":
            read, written = os.pipe()
            os.close(read)
        else:
            written = os.open("/dev/full", os.O_WRONLY)
        file = os.fdopen(written, "wb", buffering=0)
        text = io.TextIOWrapper(file, write_through=True)
        stream = LogStream(text)
        if way == "closed":
            text.close()

        for _ in range(3):
            stream.write("a line\n")
            stream.flush()

        with pytest.raises((OSError, ValueError)):
            text.write("a line\n")
        file.close()
