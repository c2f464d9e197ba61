import time

import pytest

from app.core.user_agents import device_of


class TestDeviceOf:
    @pytest.mark.parametrize(
        ("user_agent", "device"),
        [
            ("Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0", "Firefox on Linux"),
            (
                (
                    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
                    "Chrome/131.0.0.0 Safari/537.36"
                ),
                "Chrome on Windows",
            ),
            (
                (
                    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
                    "Chrome/131.0.0.0 Safari/537.36 Edg/131.0.0.0"
                ),
                "Edge on Windows",
            ),
            (
                (
                    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
                    "Version/18.1 Mobile/15E148 Safari/604.1"
                ),
                "Mobile Safari on iOS",
            ),
            (
                (
                    "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) "
                    "Chrome/131.0.0.0 Mobile Safari/537.36"
                ),
                "Chrome Mobile on Android",
            ),
            ("curl/8.5.0", "curl"),
            ("Wget/1.21.4", "Wget"),
        ],
    )
    def test_says_what_people_call_it(self, user_agent: str, device: str) -> None:
        assert device_of(user_agent) == device

    @pytest.mark.parametrize("user_agent", [None, "", " ", "zebra", "\0", "<script>", "漢字", "(((((((("])
    def test_says_nothing_of_what_nobody_knows(self, user_agent: str | None) -> None:
        assert device_of(user_agent) is None

    @pytest.mark.parametrize("part", ["Mozilla/5.0 (", "Android; ", "a ", "-", "Chrome/1.", "(" * 3, "1.2."])
    def test_takes_no_long_time_over_what_is_made_to(self, part: str) -> None:
        longest = (part * 400)[:400]
        device_of(longest)
        started = time.process_time()

        device_of(longest + "!")

        assert time.process_time() - started < 1
