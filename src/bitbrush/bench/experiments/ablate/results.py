"""``results.json`` and ``results.csv`` of an ablation: all that the tables and the page show, apart from images."""

from collections.abc import Iterator, Mapping
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
from bitbrush.bench.experiments.protocol import ANOTHER_SEED, plan_entries
from bitbrush.bench.experiments.results import results_document
from bitbrush.bench.experiments.value_table import Row, TableImages, value_rows
from bitbrush.bench.metrics.paired import LATENT_MSE, PSNR
from bitbrush.sources.prompts import PromptSet

EXPERIMENT = "ablate"
DIGITS = 4
"""Significant digits of the values per image."""


def ablation_results(
    job: AblationJob,
    full_clip: Mapping[str, NDArray[np.float64]],
    floor: Cell,
    cells: Mapping[Setting, Cell | FailedCell],
    *,
    compared_with: str,
    command: str,
) -> dict[str, Any]:
    """Returns the results as JSON values; missing cells are left out.

    Args:
        job: The ablation.
        full_clip: CLIP scores of full precision's images by prompt set, (N,) each.
        floor: Cell of another seed.
        cells: Finished cells.
        compared_with: Name of the recipe that the others are compared with.
        command: Command line.
    """
    clip = dict(full_clip) if len(full_clip) == 1 else {TOGETHER: np.concatenate([*full_clip.values()]), **full_clip}
    recipes = {
        setting: {"bits": str(setting.bits), "recipe": setting.name, "keys": setting.recipe.to_dict()}
        for setting in cells
    }
    content = {
        "against": compared_with,
        "reference": asdict(job.reference),
        "floor": {"name": ANOTHER_SEED, **_measured(job, by_set(floor.sets), clip, None)},
        "bits": list(dict.fromkeys(str(setting.bits) for setting in job.settings)),
        "recipes": list(dict.fromkeys(setting.name for setting in job.settings)),
        "cells": [{**recipes[setting], **_cell(job, setting, cells, clip, compared_with)} for setting in cells],
    }
    return results_document(EXPERIMENT, command=command, protocol=_protocol(job), content=content)


def ablation_rows(
    job: AblationJob,
    full_clip: Mapping[str, NDArray[np.float64]],
    floor: Cell,
    cells: Mapping[Setting, Cell | FailedCell],
) -> Iterator[Row]:
    """Yields a row for each image, recipe and metric, full precision and another seed included."""
    protocol = job.protocol
    clip_score = f"CLIP score ({protocol.judge.name})"

    def rows(name: str, cell: Cell, seed: int, setting: str = "") -> Iterator[Row]:
        for prompt_set in protocol.sets:
            values = cell.sets[prompt_set.name]
            metrics = {PSNR: values.psnr, LATENT_MSE: values.latent_mse, clip_score: values.clip}
            by_metric = {metric: of_images.tolist() for metric, of_images in metrics.items()}
            yield from value_rows(EXPERIMENT, name, _images(job, prompt_set, seed), by_metric, setting=setting)

    for prompt_set in protocol.sets:
        scores = {clip_score: full_clip[prompt_set.name].tolist()}
        yield from value_rows(EXPERIMENT, job.reference.name, _images(job, prompt_set, protocol.seed), scores)
    yield from rows(ANOTHER_SEED, floor, protocol.seed + 1)
    for setting, cell in cells.items():
        if isinstance(cell, Cell):
            yield from rows(setting.name, cell, protocol.seed, str(setting.bits))


def _images(job: AblationJob, prompt_set: PromptSet, seed: int) -> TableImages:
    prompts = job.protocol.prompts(prompt_set)
    return TableImages(prompt_set.name, prompts, [seed] * len(prompts))


def _protocol(job: AblationJob) -> dict[str, Any]:
    protocol = job.protocol
    return {
        "model": job.model,
        "model_options": job.options.facts(),
        **plan_entries(job.pipe, protocol.plan),
        "seed": protocol.seed,
        "batch_size": protocol.batch_size,
        "execution": protocol.execution,
        "prompt_sets": [
            {
                "name": prompts.name,
                "domain": prompts.domain.value,
                "prompts": protocol.num_images,
                "of": len(prompts.prompts),
            }
            for prompts in protocol.sets
        ],
        "calibration_prompts": sorted({setting.recipe.num_prompts for setting in job.settings}),
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
    other = next((value for key, value in cells.items() if (key.bits, key.name) == (setting.bits, compared_with)), None)
    paired = by_set(other.sets) if isinstance(other, Cell) and other is not cell else None
    return {"problem": None, **provenance, **_measured(job, by_set(cell.sets), clip, paired)}


def _measured(
    job: AblationJob,
    sets: Mapping[str, Paired],
    clip: Mapping[str, NDArray[np.float64]],
    other: Mapping[str, Paired] | None,
) -> dict[str, Any]:
    by_name = {name: asdict(figures(values, clip[name])) for name, values in sets.items()}
    compared = {name: asdict(against(other[name], values)) for name, values in sets.items()} if other else {}
    between = gap(sets, {prompts.name: prompts.domain for prompts in job.protocol.sets})
    return {
        "figures": by_name,
        "against": compared,
        "gap": asdict(between) if between else None,
        "values": {
            name: {key: _rounded(values[key]) for key in VALUES} for name, values in sets.items() if name != TOGETHER
        },
    }


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
