"""A whole ablation: its cells, ``results.json``, ``ablation.md``, ``report.html``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitbrush.artifact.models import ModelOptions
from bitbrush.artifact.quantization import require_inputs
from bitbrush.artifact.schedulers import with_scheduler
from bitbrush.bench.ablation.folder import MARKDOWN, REPORT, RESULTS, Folder
from bitbrush.bench.ablation.job import AblationJob, Protocol
from bitbrush.bench.ablation.markdown import ablation_markdown, write_markdown
from bitbrush.bench.ablation.measure import Ablation, Tell
from bitbrush.bench.ablation.page import Samples, ablation_page
from bitbrush.bench.ablation.plots import write_plots
from bitbrush.bench.ablation.recipes import Setting
from bitbrush.bench.ablation.results import ablation_results
from bitbrush.bench.files import write_whole
from bitbrush.bench.results import results_text
from bitbrush.bench.subjects import open_reference
from bitbrush.timeline.progress import Progress, silent


def open_ablation(
    model: str, settings: tuple[Setting, ...], protocol: Protocol, options: ModelOptions | None = None
) -> AblationJob:
    """The full-precision model, loaded.

    Raises UnknownModelError or ValueError where it cannot be, or where it wants pictures to start from.
    """
    options = options or ModelOptions()
    reference, pipe = open_reference(model, options)
    require_inputs(pipe, protocol.inputs)
    return AblationJob(model, options, reference, with_scheduler(pipe, protocol.plan.scheduler), settings, protocol)


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
    """Makes the cells that are not there and that no other process makes; gives what ``results.json`` holds.

    Results and report are written anew after every cell, with all that are there. ``markdown``: a further file for the
    tables, as :func:`write_markdown`. Raises ValueError if ``directory`` is another ablation's.
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
    """Names of those that are not there: another process is making them."""
    ablation = Ablation(job, Folder(directory), silent, lambda line: None)
    return [one.title for one in job.settings if not ablation.path(one).exists()]


def failed_cells(document: dict[str, Any]) -> list[str]:
    return [f"{one['bits']} {one['recipe']}: {one['problem']}" for one in document["cells"] if one["problem"]]


def _write(ablation: Ablation, against: str, command: str) -> dict[str, Any]:
    root, cells = ablation.folder.root, ablation.found()
    document = ablation_results(
        ablation.job, ablation.reference.clip_scores(), ablation.floor(), cells, compared_with=against, command=command
    )
    write_whole(results_text(document), root / RESULTS)
    write_whole(ablation_markdown(document), root / MARKDOWN)
    write_plots(document, root / MARKDOWN)
    write_whole(ablation_page(document, cells, list(_samples(ablation))), root / REPORT)
    return document


def _samples(ablation: Ablation) -> Iterator[Samples]:
    protocol = ablation.job.protocol
    for one in protocol.sets:
        first = ablation.reference.samples(one)
        yield Samples(one.name, protocol.prompts(one)[: len(first)], first)
