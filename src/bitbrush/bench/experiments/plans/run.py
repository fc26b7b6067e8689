"""Comparison of plans from start to end: cells, results, page."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bitbrush.artifact.manifest import read_manifest
from bitbrush.bench.experiments.candidates import open_candidate, open_reference
from bitbrush.bench.experiments.folders import require_own
from bitbrush.bench.experiments.plans.figures import CellFigures, cell_figures
from bitbrush.bench.experiments.plans.measure import (
    CELLS,
    HeldOutPrompts,
    PlansJob,
    Recalibration,
    is_calibrated,
    measure_plans,
)
from bitbrush.bench.experiments.plans.page import plans_page
from bitbrush.bench.experiments.plans.plan_list import Plan
from bitbrush.bench.experiments.plans.results import plans_results, plans_rows
from bitbrush.bench.experiments.protocol import plan_for
from bitbrush.bench.experiments.results import results_text
from bitbrush.bench.experiments.value_table import VALUES, write_values
from bitbrush.quantization.quantize import require_inputs
from bitbrush.runtime.choose import Choice
from bitbrush.session.disk import write_whole
from bitbrush.session.progress import Progress, silent
from bitbrush.sources.models import ModelOptions

RESULTS, REPORT = "results.json", "report.html"


def require_plans_folder(directory: Path) -> None:
    """Checks that ``directory`` is free or written by `bitbrush plans`.

    Raises:
        ValueError: It contains something else.
    """
    require_own(directory, (RESULTS, VALUES, REPORT, CELLS), "comparison of plans")


def open_plans(
    model: str,
    artifact: str | os.PathLike[str],
    prompts: HeldOutPrompts,
    choice: Choice,
    *,
    options: ModelOptions | None = None,
    recalibration: Recalibration | None = None,
) -> PlansJob:
    """Loads the artifact and its full-precision model.

    Args:
        model: Full-precision model.
        artifact: Folder of the artifact.
        prompts: Held-out prompts.
        choice: Runtime of the artifact.
        options: Loading options of the model.
        recalibration: Prompts to recalibrate with; None compares with full precision alone.

    Returns:
        The job for :func:`run_plans`.

    Raises:
        ArtifactError: The artifact cannot be loaded.
        UnknownModelError: There is no such model.
        ValueError: The artifact is made of another model, or ``recalibration`` has fewer prompts than its calibration.
    """
    source = os.fspath(artifact)
    needed = read_manifest(source)["recipe"]["num_prompts"]
    if recalibration is not None:
        recalibration = replace(recalibration, prompts=tuple(recalibration.prompts[:needed]))
        if len(recalibration.prompts) < needed:
            raise ValueError(
                f"{source} was calibrated with {needed} prompts, but {len(recalibration.prompts)} are given to "
                "recalibrate it with"
            )
    reference, full = open_reference(model, options)
    require_inputs(full, prompts.inputs)
    subject, quantized = open_candidate(
        Path(source).name, source, reference, plan_for([source], {}), choice, options=options
    )
    return PlansJob(full, reference, quantized, subject, prompts, recalibration, choice)


def run_plans(
    job: PlansJob,
    plans: Sequence[Plan],
    directory: Path,
    facts: Mapping[str, str],
    *,
    command: str = "",
    progress: Progress = silent,
) -> list[CellFigures]:
    """Measures missing plans and writes ``directory``.

    Args:
        job: Artifact, model and prompts.
        plans: Plans to measure.
        directory: Output folder.
        facts: Descriptions of prompts and noise for the page.
        command: Command line.
        progress: Callback that receives progress reports.

    Returns:
        Figures of each plan.
    """
    require_plans_folder(directory)
    cells = measure_plans(job, plans, directory, progress)
    manifest = read_manifest(job.artifact)
    figures = [
        cell_figures(planned, cell, calibrated=is_calibrated(planned, manifest))
        for planned, cell in zip(plans, cells, strict=True)
    ]
    described = {**_facts(job), **facts}
    write_values(plans_rows(job, cells), directory / VALUES)
    write_whole(results_text(plans_results(figures, job, described, command=command)), directory / RESULTS)
    page = plans_page(job.subject.name, figures, cells, job.prompts.texts, described, command)
    write_whole(page, directory / REPORT)
    return figures


def _facts(job: PlansJob) -> dict[str, str]:
    manifest = read_manifest(job.artifact)
    recipe, scheduler = manifest["recipe"], manifest["plan"]["scheduler"]
    facts = {
        "Model": f"{job.reference.source}, sha256 {job.reference.digest[:16]}",
        "Artifact": f"{job.subject.source}, {recipe['method']} W{recipe['weights']}A{recipe['activations']}, "
        f"sha256 {job.subject.digest[:16]}",
        "Calibrated for": f"{scheduler}, {recipe['steps']} steps, guidance {recipe['guidance_scale']:g}",
        "Executed by": job.subject.runtime,
        "Recalibrated with": f"{recipe['num_prompts']} prompts, for each plan; the weights stay"
        if job.recalibration
        else "not",
    }
    notes = [*job.reference.notes, *job.subject.notes]
    return facts | ({"Notes": "\n".join(notes)} if notes else {})
