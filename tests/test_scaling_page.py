"""What docs/scaling.md says of shards is what MongoDB demands of them."""

import re
from typing import Any

import pytest

from app.db.schema import DOCUMENT_MODELS
from tests.sharding import PAGE, of_the_page
from tests.test_project_files import ROOT

INDEXES: dict[str, list[dict[str, Any]]] = {
    str(model.Settings.name): [index.document for index in getattr(model.Settings, "indexes", [])]
    for model in DOCUMENT_MODELS
}


class TestShards:
    def test_are_told_of_for_every_collection(self) -> None:
        table = PAGE.partition("These stay whole")[2].partition("Behind a `mongos`")[0]
        whole = {name for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for name in re.findall(r"\w+", row)}

        assert of_the_page().keys() & whole == set()
        assert of_the_page().keys() | whole == INDEXES.keys()

    @pytest.mark.parametrize("name", of_the_page())
    def test_are_of_keys_that_have_an_index_and_keep_what_is_unique(self, name: str) -> None:
        key = [(field, 1) for field in of_the_page()[name].key]
        indexes = [(list(index["key"].items()), index.get("unique", False)) for index in INDEXES[name]]

        assert key == [("_id", 1)] or any(fields[: len(key)] == key for fields, _ in indexes)
        assert [fields for fields, is_unique in indexes if is_unique and fields[: len(key)] != key] == []

    def test_are_simulated_by_what_is_there(self) -> None:
        named = re.findall(r"`((?:tests|scripts)/\S+\.py)`", PAGE)

        assert len(named) > 8
        assert [name for name in named if not (ROOT / name).is_file()] == []
