"""A whole benchmark: pictures, figures, ``results.json``, ``report.html``."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bitbrush.bench.experiments.bench.figures import bench_figures
from bitbrush.bench.experiments.bench.qdiffbench import Protocol, compute_all, generate_all
from bitbrush.bench.experiments.bench.report import render_report
from bitbrush.bench.experiments.bench.results import bench_results, bench_rows
from bitbrush.bench.experiments.folders import require_own
from bitbrush.bench.experiments.protocol import plan_for
from bitbrush.bench.experiments.results import results_text
from bitbrush.bench.experiments.value_table import VALUES, write_values
from bitbrush.bench.images.image_values import Work
from bitbrush.bench.networks.chosen import Networks, load_networks
from bitbrush.runtime.choose import runtime_named
from bitbrush.session.disk import write_whole
from bitbrush.session.progress import Progress, silent
from bitbrush.session.ranks import ranks
from bitbrush.sources.models import ModelOptions
from bitbrush.sources.prompts import bench_sets

RESULTS, REPORT, PICTURES = "results.json", "report.html", "pictures"


def benchmark(
    reference: str,
    candidates: Mapping[str, str],
    directory: str | os.PathLike[str],
    *,
    clip: str | None = None,
    feature_extractor: str | None = None,
    lpips: str | os.PathLike[str] | None = None,
    pictures: str | os.PathLike[str] | None = None,
    options: ModelOptions | None = None,
    progress: Progress = silent,
    **protocol: Any,
) -> dict[str, Any]:
    """``bitbrush bench`` from Python, its options under the same names: writes ``directory`` and gives the results.

    ``candidates``: artifacts or models by name; ``options``: revision, variant and LoRAs with which the reference is
    loaded; ``protocol``: what :func:`bench_protocol` takes. Where torchrun started
    several processes, each calls this, and the first alone is given the results. Raises ValueError as
    :func:`run_bench`, and for prompts or networks that cannot be loaded.
    """
    root = Path(directory)
    require_bench_folder(root)
    chosen = bench_protocol(reference, candidates.values(), **protocol)
    networks = load_networks(reference, clip=clip, feature_extractor=feature_extractor, lpips=lpips)
    place = None if pictures is None else Path(pictures)
    with ranks() as own:
        work = Work(own, progress if own.leads else silent)
        return run_bench(reference, candidates, chosen, networks, root, work, pictures=place, options=options)


def bench_protocol(
    reference: str,
    candidates: Iterable[str],
    *,
    prompts: Sequence[str] = (),
    unseen_prompts: Sequence[str] = (),
    num_images: int = 128,
    seeds: Sequence[int] = (1,),
    batch_size: int = 16,
    latents: int = 32,
    steps: int | None = None,
    guidance_scale: float | None = None,
    scheduler: str | None = None,
    pipeline_arguments: Sequence[str] | Mapping[str, Any] | None = None,
    inputs: Mapping[str, Sequence[Any]] | None = None,
    runtime: str = "auto",
    dtype: str | torch.dtype | None = None,
    memory: str = "expanded",
) -> Protocol:
    """From what a caller gives: without prompts the bundled sets, without a plan the first artifact's.

    ``inputs``: pictures (and masks) that the pipeline starts from, by its own names for them, used in turn.
    """
    given = {
        "steps": steps,
        "guidance_scale": guidance_scale,
        "scheduler": scheduler,
        "pipeline_arguments": pipeline_arguments,
    }
    return Protocol(
        plan=plan_for(candidates, given),
        sets=bench_sets(prompts, unseen_prompts, reference),
        num_images=num_images,
        seeds=tuple(seeds),
        batch_size=batch_size,
        with_latents=latents,
        inputs=inputs or {},
        choice=runtime_named(runtime, dtype, memory),
    )


def require_bench_folder(directory: Path) -> None:
    """Raises ValueError if something stands at ``directory`` that no benchmark wrote."""
    require_own(directory, (RESULTS, VALUES, REPORT, PICTURES), "benchmark")


def run_bench(
    reference: str,
    candidates: Mapping[str, str],
    protocol: Protocol,
    networks: Networks,
    directory: Path,
    work: Work,
    *,
    pictures: Path | None = None,
    options: ModelOptions | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Benchmarks ``candidates`` (sources by name) against ``reference`` and writes ``directory``; gives the results.

    ``pictures``: where pictures are kept and found again, ``directory/pictures`` if not given; ``options``: with which
    the reference is loaded. Every process of
    ``work.ranks`` makes its share of pictures and features; the first puts the figures together and writes.
    Raises ValueError if the reference cannot be loaded, or ``directory`` holds something else.
    """
    require_bench_folder(directory)
    made = generate_all(reference, candidates, protocol, pictures or directory / PICTURES, work, options=options)
    compute_all(made, networks, work)
    document: dict[str, Any] = {}
    if work.ranks.leads:
        figures = bench_figures(made, protocol.sets, networks, work.progress)
        document = bench_results(figures, made, protocol, networks, command)
        write_values(bench_rows(figures, made), directory / VALUES)
        write_whole(results_text(document), directory / RESULTS)
        write_whole(render_report(document, figures, made), directory / REPORT)
    work.ranks.wait()
    return document
