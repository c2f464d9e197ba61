import pytest
from bson import ObjectId

from app.core.one_time_token import read_token, token_text
from tests.conftest import SECRET
from tests.core.active import OTHER_SECRET, activate

ID = ObjectId("6746d0a8f8f8f8f8f8f8f8f8")


@pytest.fixture(autouse=True)
def _settings() -> None:
    activate()


class TestText:
    def test_is_the_id_and_a_hash_under_the_key_that_is_safe_in_a_url(self) -> None:
        text = token_text(ID, "password_reset")

        assert text == "6746d0a8f8f8f8f8f8f8f8f8.sQ5q55d_IfScdwI1UZ5tuhyRLDxAvWI5IIMMUtLau-4"

    def test_is_the_same_each_time(self) -> None:
        assert token_text(ID, "password_reset") == token_text(ID, "password_reset")

    def test_differs_with_the_purpose_the_id_and_the_secret(self) -> None:
        texts = {
            token_text(ID, "password_reset"),
            token_text(ID, "email_verification"),
            token_text(ObjectId("6746d0a8f8f8f8f8f8f8f8f9"), "password_reset"),
        }
        activate(secret_key=OTHER_SECRET)
        texts.add(token_text(ID, "password_reset"))

        assert len({text.partition(".")[2] for text in texts}) == 4


class TestReading:
    def test_gives_the_id_back(self) -> None:
        assert read_token(token_text(ID, "password_reset"), "password_reset") == ID

    def test_refuses_another_purpose(self) -> None:
        assert read_token(token_text(ID, "password_reset"), "email_verification") is None

    def test_refuses_the_hash_of_another_id(self) -> None:
        mac = token_text(ID, "password_reset").partition(".")[2]

        assert read_token(f"6746d0a8f8f8f8f8f8f8f8f9.{mac}", "password_reset") is None

    def test_refuses_every_change_of_one_character(self) -> None:
        text = token_text(ID, "password_reset")
        changed = [text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :] for at in range(len(text))]

        assert [each for each in changed if read_token(each, "password_reset") is not None] == []

    @pytest.mark.parametrize(
        "text",
        [
            "",
            ".",
            "6746d0a8f8f8f8f8f8f8f8f8",
            "6746d0a8f8f8f8f8f8f8f8f8.",
            "6746d0a8f8f8f8f8f8f8f8f8.ÄÖÜ",
            "6746d0a8f8f8f8f8f8f8f8f8.\x00",
            "twelve bytes.x",
            "\N{GRINNING FACE}.\N{GRINNING FACE}",
        ],
    )
    def test_refuses_what_is_no_token(self, text: str) -> None:
        assert read_token(text, "password_reset") is None

    def test_refuses_what_is_cut_off_or_goes_on(self) -> None:
        text = token_text(ID, "password_reset")

        assert read_token(text[:-1], "password_reset") is None
        assert read_token(f"{text}A", "password_reset") is None
        assert read_token(f"{text}.A", "password_reset") is None

    def test_knows_what_a_previous_secret_has_signed(self) -> None:
        text = token_text(ID, "password_reset")
        activate(secret_key=OTHER_SECRET, previous_secret_keys=[SECRET])

        assert read_token(text, "password_reset") == ID

    def test_refuses_what_another_secret_has_signed(self) -> None:
        text = token_text(ID, "password_reset")
        activate(secret_key=OTHER_SECRET)

        assert read_token(text, "password_reset") is None
