"""JSON Schema of the results files that experiments write."""

import json
from importlib.resources import files
from typing import Any

RESULTS = "results.schema.json"


def results_schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of every ``results.json`` and of ``compare --json``."""
    schema: dict[str, Any] = json.loads(files(__package__).joinpath(RESULTS).read_text(encoding="utf-8"))
    return schema
