"""What somebody searches for, as words: without case and without accents."""

import unicodedata


def words_of(text: str) -> list[str]:
    """The words in it, each once. A word is made of letters, marks, digits and underscores, as text indexes have it."""
    spaced = "".join(character if _is_of_a_word(character) else " " for character in text)
    return list(dict.fromkeys(spaced.split()))


def contains_all(text: str, words: list[str]) -> bool:
    """Whether every word occurs in the text, also as a part of a longer one."""
    folded = _folded(text)
    return all(_folded(word) in folded for word in words)


def _folded(text: str) -> str:
    decomposed = unicodedata.normalize("NFD", text.casefold())
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def _is_of_a_word(character: str) -> bool:
    return character == "_" or unicodedata.category(character)[0] in "LMN"
