"""Reads the results files of an experiment, and holds them to what is documented of them."""

import csv
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bitbrush.bench.experiments.value_table import COLUMNS, VALUES
from bitbrush.bench.schemas import results_schema

VALIDATOR = jsonschema.Draft202012Validator(results_schema())


def valid_results(text: str) -> dict[str, Any]:
    """The document, which fits the schema; Infinity and NaN are no JSON."""
    document: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
    problems = [f"{error.json_path}: {error.message[:200]}" for error in VALIDATOR.iter_errors(document)]
    assert not problems
    return document


def read_results(folder: Path) -> dict[str, Any]:
    document = valid_results((folder / "results.json").read_text(encoding="utf-8"))
    assert {row["experiment"] for row in read_values(folder)} == {document["experiment"]}
    return document


def read_values(folder: Path) -> list[dict[str, Any]]:
    """The rows of the table, values as numbers; None where one is empty."""
    with (folder / VALUES).open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    assert rows
    for row in rows:
        assert list(row) == list(COLUMNS)
        row |= {"image": int(row["image"]), "value": float(row["value"]) if row["value"] else None}
    keys = [tuple(row[name] for name in COLUMNS if name not in ("value", "prompt")) for row in rows]
    assert len(set(keys)) == len(keys)
    return rows
