import pytest

from app.core.stored_object import is_key, key_of, new_stem

STEM = "3f/a0/3fa0c1d2e3f405162738495a6b7c8d9e"


class TestKey:
    def test_is_made_of_a_stem_and_a_part(self) -> None:
        assert key_of(STEM) == "3f/a0/3fa0c1d2e3f405162738495a6b7c8d9e.original"
        assert key_of(STEM, "thumbnail-64") == "3f/a0/3fa0c1d2e3f405162738495a6b7c8d9e.thumbnail-64"

    @pytest.mark.parametrize("part", ["", "..", "a/b", "A", "a.b", "-a", "a" * 33, "a\n", "é"])
    def test_has_a_part_of_few_characters(self, part: str) -> None:
        with pytest.raises(ValueError, match="not the key"):
            key_of(STEM, part)

    def test_has_a_stem_that_nobody_can_guess(self) -> None:
        stems = {new_stem() for _ in range(1000)}

        assert len(stems) == 1000
        assert all(is_key(f"{stem}.original") for stem in stems)
        assert len({stem[:2] for stem in stems}) > 200
