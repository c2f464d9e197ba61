import pytest

from app.core.search_words import contains_all, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Buy tea", ["Buy", "tea"]),
        ('"Buy" -tea: (now!)', ["Buy", "tea", "now"]),
        ("tea tea", ["tea"]),
        ("snake_case v2.0", ["snake_case", "v2", "0"]),
        ("Ünlü हिन्दी 日本語", ["Ünlü", "हिन्दी", "日本語"]),
        ("?! ...", []),
    ],
)
def test_words_are_letters_marks_and_digits(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("title", "words", "is_found"),
    [
        ("Crème brûlée", ["creme", "BRULEE"], True),
        ("Crème brûlée", ["creme", "tea"], False),
        ("Teamwork", ["tea"], True),
        ("Straße", ["strasse"], True),
        ("", ["tea"], False),
    ],
)
def test_a_title_is_found_by_its_words(title: str, words: list[str], *, is_found: bool) -> None:
    assert contains_all(title, words) is is_found
