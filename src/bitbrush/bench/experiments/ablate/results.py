"""``results.json`` of an ablation: everything the tables and the page are made of, pictures apart."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.experiments.ablate.cells import Cell
from bitbrush.bench.experiments.ablate.figures import (
    TOGETHER,
    VALUES,
    Paired,
    against,
    by_set,
    figures,
    gap,
)
from bitbrush.bench.experiments.ablate.job import AblationJob
from bitbrush.bench.experiments.ablate.recipes import Setting
from bitbrush.bench.experiments.cell_store import FailedCell
from bitbrush.bench.experiments.protocol import ANOTHER_SEED
from bitbrush.bench.experiments.results import finite, versions

SCHEMA_VERSION = 1
DIGITS = 4
"""Significant digits of the values picture by picture."""


def ablation_results(
    job: AblationJob,
    full_clip: Mapping[str, NDArray[np.float64]],
    floor: Cell,
    cells: Mapping[Setting, Cell | FailedCell],
    *,
    compared_with: str,
    command: str,
) -> dict[str, Any]:
    """As JSON values; cells that are not there yet are left out. ``full_clip``: full precision's CLIP scores by set."""
    clip = dict(full_clip) if len(full_clip) == 1 else {TOGETHER: np.concatenate([*full_clip.values()]), **full_clip}
    told = {
        setting: {"bits": str(setting.bits), "recipe": setting.name, "keys": setting.recipe.to_dict()}
        for setting in cells
    }
    document: dict[str, Any] = finite(
        {
            "schema_version": SCHEMA_VERSION,
            "command": command,
            "protocol": _protocol(job),
            "against": compared_with,
            "reference": asdict(job.reference),
            "floor": {"name": ANOTHER_SEED, **_measured(job, by_set(floor.sets), clip, None)},
            "bits": list(dict.fromkeys(str(one.bits) for one in job.settings)),
            "recipes": list(dict.fromkeys(one.name for one in job.settings)),
            "cells": [{**told[setting], **_cell(job, setting, cells, clip, compared_with)} for setting in cells],
            "versions": versions(),
        }
    )
    return document


def _protocol(job: AblationJob) -> dict[str, Any]:
    protocol = job.protocol
    return {
        "model": job.model,
        "model_options": job.options.facts(),
        "scheduler": type(job.pipe.scheduler).__name__,
        "steps": protocol.plan.steps,
        "guidance_scale": protocol.plan.guidance_scale,
        "arguments": dict(protocol.plan.arguments),
        "seed": protocol.seed,
        "execution": protocol.execution,
        "prompt_sets": [
            {"name": one.name, "domain": one.domain.value, "prompts": protocol.num_images, "of": len(one.prompts)}
            for one in protocol.sets
        ],
        "calibration_prompts": sorted({one.recipe.num_prompts for one in job.settings}),
        "clip": {"name": protocol.judge.name, "sha256": protocol.judge.digest},
    }


def _cell(
    job: AblationJob,
    setting: Setting,
    cells: Mapping[Setting, Cell | FailedCell],
    clip: Mapping[str, NDArray[np.float64]],
    compared_with: str,
) -> dict[str, Any]:
    cell = cells[setting]
    if isinstance(cell, FailedCell):
        return {"problem": cell.problem}
    made = cell.provenance
    assert made is not None
    provenance = {**asdict(made), "seconds": made.seconds, "denoiser_calls_per_batch": made.calls}
    other = next((one for key, one in cells.items() if (key.bits, key.name) == (setting.bits, compared_with)), None)
    paired = by_set(other.sets) if isinstance(other, Cell) and other is not cell else None
    return {"problem": None, **provenance, **_measured(job, by_set(cell.sets), clip, paired)}


def _measured(
    job: AblationJob,
    own: Mapping[str, Paired],
    clip: Mapping[str, NDArray[np.float64]],
    other: Mapping[str, Paired] | None,
) -> dict[str, Any]:
    found = {name: asdict(figures(values, clip[name])) for name, values in own.items()}
    compared = {name: asdict(against(other[name], values)) for name, values in own.items()} if other else {}
    between = gap(own, {one.name: one.domain for one in job.protocol.sets})
    return {
        "figures": found,
        "against": compared,
        "gap": asdict(between) if between else None,
        "values": {
            name: {key: _rounded(values[key]) for key in VALUES} for name, values in own.items() if name != TOGETHER
        },
    }


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
