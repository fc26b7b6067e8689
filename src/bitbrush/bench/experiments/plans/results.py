"""``results.json`` of `plans`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bitbrush.bench.experiments.plans.figures import CellFigures, headline
from bitbrush.bench.experiments.plans.measure import PlansJob
from bitbrush.bench.experiments.results import finite, results_text, versions

SCHEMA_VERSION = 1


def plans_results(figures: Sequence[CellFigures], job: PlansJob, facts: Mapping[str, Any]) -> str:
    """Serializes the figures as JSON; interval bounds that do not exist are null."""
    document = {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "headline": headline(figures),
        "reference": asdict(job.reference),
        "artifact": asdict(job.subject),
        "cells": [_cell(one) for one in figures],
        "versions": versions(),
    }
    return results_text(finite(document))


def _cell(one: CellFigures) -> dict[str, Any]:
    values = asdict(one)
    planned = values.pop("planned")
    plan = planned.pop("plan")
    return {**plan, "arguments": dict(plan["arguments"]), **planned, **values}
