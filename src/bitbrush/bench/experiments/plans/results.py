"""``results.json`` and ``results.csv`` of `plans`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bitbrush.bench.experiments.cell_store import FailedCell
from bitbrush.bench.experiments.plans.cells import Fidelity, PlanCell
from bitbrush.bench.experiments.plans.figures import CellFigures, headline
from bitbrush.bench.experiments.plans.measure import PlansJob
from bitbrush.bench.experiments.results import results_document
from bitbrush.bench.experiments.value_table import Row, TableImages, value_rows
from bitbrush.bench.metrics.paired import LATENT_MSE, PSNR

EXPERIMENT = "plans"


def plans_results(
    figures: Sequence[CellFigures], job: PlansJob, facts: Mapping[str, str], *, command: str
) -> dict[str, Any]:
    """Returns the results as JSON values; interval bounds that do not exist are null."""
    content = {
        "facts": dict(facts),
        "headline": headline(figures),
        "reference": asdict(job.reference),
        "artifact": asdict(job.subject),
        "cells": [_cell(cell) for cell in figures],
    }
    return results_document(EXPERIMENT, command=command, protocol=_protocol(job), content=content)


def plans_rows(job: PlansJob, cells: Sequence[PlanCell | FailedCell]) -> Iterator[Row]:
    """Yields a row for each image, plan, metric, and artifact or its recalibrated form."""
    for cell in cells:
        if isinstance(cell, FailedCell):
            continue
        measured = {job.subject.name: cell.artifact, f"{job.subject.name}, recalibrated": cell.recalibrated}
        for name, fidelity in measured.items():
            if fidelity is not None:
                yield from _rows(job, name, fidelity, cell.planned.name)


def _rows(job: PlansJob, name: str, fidelity: Fidelity, setting: str) -> Iterator[Row]:
    start = 0
    for prompt_set, prompts in job.prompts.sets.items():
        part = slice(start, start + len(prompts))
        images = TableImages(prompt_set, prompts, [job.prompts.seed] * len(prompts))
        values = {PSNR: fidelity.psnr[part].tolist(), LATENT_MSE: fidelity.latent_mse[part].tolist()}
        yield from value_rows(EXPERIMENT, name, images, values, setting=setting)
        start = part.stop


def _protocol(job: PlansJob) -> dict[str, Any]:
    prompts = job.prompts
    return {
        "model": job.reference.source,
        "seed": prompts.seed,
        "batch_size": prompts.batch_size,
        "execution": job.subject.runtime,
        "prompt_sets": [{"name": name, "prompts": len(texts)} for name, texts in prompts.sets.items()],
        "recalibration_prompts": len(job.recalibration.prompts) if job.recalibration else 0,
    }


def _cell(figures: CellFigures) -> dict[str, Any]:
    values = asdict(figures)
    planned = values.pop("planned")
    plan = planned.pop("plan")
    return {**plan, "arguments": dict(plan["arguments"]), **planned, **values}
