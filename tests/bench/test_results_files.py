"""The schema of results files describes everything, refuses what does not fit; the table is whole or not there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bitbrush.bench.experiments.results import results_document
from bitbrush.bench.experiments.value_table import VALUES, TableImages, value_rows, write_values
from bitbrush.bench.schemas import results_schema
from tests.bench.results_files import VALIDATOR, read_values

PROTOCOL = {"model": "emoji-sd", "seed": 1, "prompt_sets": [{"name": "coco", "prompts": 2}]}
CONTENT: dict[str, Any] = {
    "facts": {},
    "recommendation": {"relax": None, "reason": "few prompts"},
    "steps": [],
}


def objects(schema: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property below a schema, with its path."""
    for name, value in schema.get("properties", {}).items() if isinstance(schema, dict) else ():
        if value is not True:
            yield f"{place}/{name}", value
            yield from objects(value, f"{place}/{name}")


def test_the_schema_is_one_and_says_what_every_entry_is() -> None:
    schema = results_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert set(schema["properties"]["experiment"]["enum"]) <= set(schema["$defs"])
    for name, definition in {"": schema, **schema["$defs"]}.items():
        assert definition["description"]
        for place, entry in objects(definition, name):
            assert "description" in entry or "description" in schema["$defs"][entry["$ref"].rpartition("/")[2]], place


def test_a_document_has_the_envelope() -> None:
    document = results_document("sensitivity", command="", protocol=PROTOCOL, content=CONTENT)
    assert not list(VALIDATOR.iter_errors(document))
    assert document["versions"]["bitbrush"]


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 1},
        {"experiment": "test"},
        {"experiment": "plans"},
        {"protocol": {"model": "emoji-sd"}},
        {"steps": None},
        {"another": 1},
    ],
)
def test_what_does_not_fit_is_seen(change: dict[str, Any]) -> None:
    document = results_document("sensitivity", command="", protocol=PROTOCOL, content=CONTENT)
    assert list(VALIDATOR.iter_errors({**document, **change}))


IMAGES = TableImages("coco", ["a cat, red", 'an "owl"'], [1, 1])


def test_a_table_comes_back(tmp_path: Path) -> None:
    rows = value_rows("bench", "rtn", IMAGES, {"SSIM": [0.1, float("nan")], "latent MSE": [None, 1 / 3]})
    write_values(rows, tmp_path / VALUES)
    found = [(row["image"], row["prompt"], row["metric"], row["value"]) for row in read_values(tmp_path)]
    assert found == [
        (0, "a cat, red", "SSIM", 0.1),
        (1, 'an "owl"', "SSIM", None),
        (1, 'an "owl"', "latent MSE", 1 / 3),
    ]


def test_a_table_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / VALUES).write_text("old")
    with pytest.raises(ValueError, match="shorter"):
        write_values(value_rows("bench", "rtn", IMAGES, {"SSIM": [0.1]}), tmp_path / VALUES)
    assert [path.name for path in tmp_path.iterdir()] == [VALUES]
    assert (tmp_path / VALUES).read_text() == "old"
