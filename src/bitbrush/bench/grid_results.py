"""``results.json`` of a grid."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bitbrush.bench.grid import GridJob
from bitbrush.bench.grid_figures import CellFigures, headline
from bitbrush.bench.results import versions

SCHEMA_VERSION = 1


def grid_results(figures: Sequence[CellFigures], job: GridJob, facts: Mapping[str, Any]) -> str:
    """As JSON; ends of intervals that do not exist are null."""
    document = {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "headline": headline(figures),
        "reference": asdict(job.reference),
        "artifact": asdict(job.subject),
        "cells": [_cell(one) for one in figures],
        "versions": versions(),
    }
    return json.dumps(_finite(document), indent=1, ensure_ascii=False) + "\n"


def _cell(one: CellFigures) -> dict[str, Any]:
    told = asdict(one)
    planned = told.pop("planned")
    plan = planned.pop("plan")
    return {**plan, "arguments": dict(plan["arguments"]), **planned, **told}


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(one) for key, one in value.items()}
        case list() | tuple():
            return [_finite(one) for one in value]
        case _:
            return value
