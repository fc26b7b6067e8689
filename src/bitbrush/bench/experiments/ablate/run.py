"""Ablation from start to end: cells, results, tables, page."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bitbrush.bench.experiments.ablate.folder import (
    KNOWN,
    MARKDOWN,
    REPORT,
    RESULTS,
    Folder,
)
from bitbrush.bench.experiments.ablate.job import AblationJob, Protocol
from bitbrush.bench.experiments.ablate.markdown import ablation_markdown, section_of, write_markdown
from bitbrush.bench.experiments.ablate.measure import Ablation, Tell
from bitbrush.bench.experiments.ablate.page import Samples, ablation_page
from bitbrush.bench.experiments.ablate.plots import write_plots
from bitbrush.bench.experiments.ablate.recipes import (
    USUAL_BITS,
    USUAL_RECIPES,
    Bits,
    NamedRecipe,
    settings,
)
from bitbrush.bench.experiments.ablate.results import ablation_results, ablation_rows
from bitbrush.bench.experiments.candidates import open_reference
from bitbrush.bench.experiments.folders import require_own
from bitbrush.bench.experiments.results import results_text
from bitbrush.bench.experiments.value_table import VALUES, write_values
from bitbrush.bench.networks.chosen import judge_of
from bitbrush.quantization.quantize import require_inputs
from bitbrush.runtime.choose import dtype_name, runtime_named
from bitbrush.session.disk import write_whole
from bitbrush.session.progress import Progress, silent
from bitbrush.sources.models import ModelOptions, find_model
from bitbrush.sources.prompts import bench_sets
from bitbrush.sources.prompts import calibration_prompts as read_calibration
from bitbrush.sources.schedulers import with_scheduler

USUAL = "pcr"
"""Recipe that the others are compared with by default, if it is there."""


def ablate(
    model: str,
    directory: str | os.PathLike[str],
    *,
    against: str | None = None,
    markdown: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
    tell: Tell = lambda line: None,
    **options: Any,
) -> dict[str, Any]:
    """Compares recipes at several bit settings, as ``bitbrush ablate`` does, and writes ``directory``.

    A recipe that fails becomes a cell with its ``problem``.

    Args:
        model: Full-precision model: bundled name, folder or hub id.
        directory: Output folder; finished cells in it are reused.
        against: Name of the recipe that the others are compared with.
        markdown: Further file for the tables.
        progress: Callback that receives progress reports.
        tell: Callback that receives a line whenever a cell begins or ends.
        **options: Arguments of :func:`ablation_job`: recipes, bits, prompts and so on.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: An argument is invalid, or ``directory`` belongs to another ablation.
    """
    root, tables = Path(directory), None if markdown is None else Path(markdown)
    require_ablation_folder(root, tables, model)
    job = ablation_job(model, **options)
    return run_ablation(job, root, against=compared_with(against, job), markdown=tables, progress=progress, tell=tell)


def ablation_job(
    model: str,
    *,
    recipes: Sequence[str] = USUAL_RECIPES,
    bits: Sequence[str] = USUAL_BITS,
    prompts: Sequence[str] = (),
    unseen_prompts: Sequence[str] = (),
    num_images: int = 32,
    calibration_prompts: str | None = None,
    clip: str | None = None,
    seed: int = 1,
    batch_size: int = 16,
    inputs: Mapping[str, Sequence[Any]] | None = None,
    runtime: str = "auto",
    dtype: str | torch.dtype = "float32",
    memory: str = "expanded",
    generic: bool = False,
    options: ModelOptions | None = None,
    **shared: Any,
) -> AblationJob:
    """Checks everything and loads the full-precision model; nothing is computed yet.

    Args:
        model: Full-precision model: bundled name, folder or hub id.
        recipes: ``"METHOD KEY=VALUE ..."`` or ``"NAME: METHOD ..."``; a recipe file may stand in place of METHOD.
        bits: Bit settings, e.g. ``"W4A8"``.
        prompts: Held-out prompts of the calibration style: bundled sets or files. The model's own sets are used where
            neither these nor ``unseen_prompts`` are given.
        unseen_prompts: Prompts of another style.
        num_images: Images of each prompt set.
        calibration_prompts: Bundled set or file of prompts to quantize with.
        clip: CLIP model of the CLIP scores.
        seed: Seed of the images.
        batch_size: Prompts per denoiser call.
        inputs: Further pipeline arguments, used in turn for the prompts.
        runtime: Runtime that executes the artifacts.
        dtype: Type between the integer products.
        memory: Whether weights are expanded or stay packed.
        generic: Whether to quantize the layers of any denoiser without knowledge of its architecture.
        options: Loading options of the model.
        **shared: Keys that all recipes have: steps, guidance_scale, scheduler, pipeline_arguments, num_prompts.
            None keeps the default.

    Returns:
        The job for :func:`run_ablation`.

    Raises:
        ValueError: An argument is invalid.
        UnknownModelError: There is no such model.
    """
    options = options or ModelOptions()
    keys = {key: value for key, value in shared.items() if value is not None}
    named = [NamedRecipe.parse(text) for text in recipes]
    compared = settings(named, list(dict.fromkeys(Bits.parse(text) for text in bits)), keys)
    find_model(model, options)
    choice = runtime_named(runtime, dtype, memory)
    protocol = Protocol(
        plan=compared[0].recipe.plan,
        sets=bench_sets(prompts, unseen_prompts, model),
        num_images=num_images,
        calibration=read_calibration(calibration_prompts, model, option="--calibration-prompts"),
        judge=judge_of(model, clip),
        choice=choice,
        execution=f"{choice.runtime.name}, {dtype_name(dtype)}",
        seed=seed,
        batch_size=batch_size,
        inputs=inputs or {},
        generic=generic,
    )
    reference, pipe = open_reference(model, options)
    require_inputs(pipe, protocol.inputs)
    return AblationJob(model, options, reference, with_scheduler(pipe, protocol.plan.scheduler), compared, protocol)


def compared_with(against: str | None, job: AblationJob) -> str:
    """Returns the name of the recipe that all are compared with; None asks for the default.

    Raises:
        ValueError: The recipe is not there.
    """
    names = list(dict.fromkeys(setting.name for setting in job.settings))
    if against is not None and against not in names:
        raise ValueError(f"against is {against!r}, which is not compared; the recipes are {', '.join(names)}")
    return against or (USUAL if USUAL in names else names[0])


def require_ablation_folder(directory: Path, markdown: Path | None, model: str) -> None:
    """Checks that results can be written, before anything long starts.

    Raises:
        ValueError: The folder contains something else, or the Markdown file lacks its marks.
    """
    require_own(directory, KNOWN, "ablation")
    if markdown is not None:
        section_of(markdown, model)


def run_ablation(
    job: AblationJob,
    directory: Path,
    *,
    against: str,
    command: str = "",
    markdown: Path | None = None,
    progress: Progress = silent,
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Measures the missing cells that no other process has claimed.

    Results and page are written again after every cell, with all finished cells.

    Args:
        job: The ablation.
        directory: Output folder.
        against: Name of the recipe that the others are compared with.
        command: Command line.
        markdown: Further file for the tables, as :func:`write_markdown` writes it.
        progress: Callback that receives progress reports.
        tell: Callback that receives a line whenever a cell begins or ends.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: ``directory`` belongs to another ablation.
    """
    ablation = Ablation(job, Folder(directory), progress, tell)
    ablation.prepare()
    document = _write(ablation, against, command)
    for _ in ablation.work():
        document = _write(ablation, against, command)
    document = _write(ablation, against, command)  # another process may have ended meanwhile
    if markdown is not None:
        write_markdown(document, markdown)
    return document


def missing_cells(job: AblationJob, directory: Path) -> list[str]:
    """Lists the cells that are not there because another process is measuring them."""
    ablation = Ablation(job, Folder(directory), silent, lambda line: None)
    return [setting.title for setting in job.settings if not ablation.path(setting).exists()]


def failed_cells(document: dict[str, Any]) -> list[str]:
    """Lists the failed cells with their problems."""
    return [f"{cell['bits']} {cell['recipe']}: {cell['problem']}" for cell in document["cells"] if cell["problem"]]


def _write(ablation: Ablation, against: str, command: str) -> dict[str, Any]:
    root, cells = ablation.folder.root, ablation.finished()
    measured = (ablation.job, ablation.reference.clip_scores(), ablation.floor(), cells)
    document = ablation_results(*measured, compared_with=against, command=command)
    write_values(ablation_rows(*measured), root / VALUES)
    write_whole(results_text(document), root / RESULTS)
    write_whole(ablation_markdown(document), root / MARKDOWN)
    write_plots(document, root / MARKDOWN)
    write_whole(ablation_page(document, cells, list(_samples(ablation))), root / REPORT)
    return document


def _samples(ablation: Ablation) -> Iterator[Samples]:
    protocol = ablation.job.protocol
    for prompts in protocol.sets:
        images = ablation.reference.samples(prompts)
        yield Samples(prompts.name, protocol.prompts(prompts)[: len(images)], images)
