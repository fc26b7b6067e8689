"""Benchmark from start to end: images, figures, results, page."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bitbrush.bench.experiments.bench.figures import bench_figures, image_metrics
from bitbrush.bench.experiments.bench.gates import Gate, gate_results
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
    metrics: Sequence[str] = (),
    pictures: str | os.PathLike[str] | None = None,
    options: ModelOptions | None = None,
    gates: Sequence[str] = (),
    progress: Progress = silent,
    **protocol: Any,
) -> dict[str, Any]:
    """Benchmarks candidates against full precision, as ``bitbrush bench`` does, and writes ``directory``.

    Where torchrun started several processes, each calls this function, and only the first gets the results.

    Args:
        reference: Full-precision model: bundled name, folder or hub id.
        candidates: Artifacts, models, ``PEER:SCHEME`` or ``MODULE:FUNCTION`` by name.
        directory: Output folder for ``results.json``, ``results.csv``, ``report.html`` and images.
        clip: CLIP model: bundled name, folder or hub id.
        feature_extractor: Network for distances between sets: a CLIP, or torch-fidelity's Inception (.pth).
        lpips: Weights of LPIPS; None leaves it out.
        metrics: Metrics of preference and perception, ``NAME=WEIGHTS`` each.
        pictures: Folder of images that benchmarks share; by default in ``directory``.
        options: Revision, variant and LoRAs with which the reference is loaded.
        gates: Bounds such as ``"psnr>=25"``; ``gates`` of the results says which hold.
        progress: Callback that receives progress reports.
        **protocol: Arguments of :func:`bench_protocol`: prompts, num_images, seeds, steps and so on.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: The reference, prompts or networks cannot be loaded, a gate is invalid, or ``directory`` contains
            something else.
    """
    root = Path(directory)
    require_bench_folder(root)
    chosen = bench_protocol(reference, candidates.values(), **protocol)
    networks = load_networks(reference, clip=clip, feature_extractor=feature_extractor, lpips=lpips, metrics=metrics)
    bounds = read_gates(gates, networks)
    place = None if pictures is None else Path(pictures)
    with ranks() as processes:
        work = Work(processes, progress if processes.leads else silent)
        return run_bench(
            reference, candidates, chosen, networks, root, work, pictures=place, options=options, gates=bounds
        )


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
    """Builds the settings of a benchmark: by default the bundled prompt sets and the first artifact's plan.

    Args:
        reference: Full-precision model.
        candidates: Sources of the candidates.
        prompts: Held-out prompts of the calibration style: bundled sets or files.
        unseen_prompts: Prompts of another style.
        num_images: Images of each prompt set and seed.
        seeds: Seeds; as many more make the floor.
        batch_size: Prompts per denoiser call.
        latents: Images of each set that store their latents of every step.
        steps: Denoising steps.
        guidance_scale: Guidance.
        scheduler: Scheduler.
        pipeline_arguments: Further arguments of the pipeline's call.
        inputs: Images and masks that the pipeline starts from, by its argument names, used in turn.
        runtime: Runtime of the artifacts.
        dtype: Type between the integer products.
        memory: Whether weights are expanded or stay packed.

    Returns:
        The settings.

    Raises:
        ValueError: A value is invalid, or prompts cannot be read.
    """
    keys = {
        "steps": steps,
        "guidance_scale": guidance_scale,
        "scheduler": scheduler,
        "pipeline_arguments": pipeline_arguments,
    }
    return Protocol(
        plan=plan_for(candidates, keys),
        sets=bench_sets(prompts, unseen_prompts, reference),
        num_images=num_images,
        seeds=tuple(seeds),
        batch_size=batch_size,
        with_latents=latents,
        inputs=inputs or {},
        choice=runtime_named(runtime, dtype, memory),
    )


def read_gates(texts: Sequence[str], networks: Networks) -> list[Gate]:
    """Reads gates of the metrics that a benchmark with these networks computes.

    Raises:
        ValueError: A gate has another form, or there is no such metric.
    """
    return [Gate.parse(text, image_metrics(networks)) for text in texts]


def require_bench_folder(directory: Path) -> None:
    """Checks that ``directory`` is free or written by a benchmark.

    Raises:
        ValueError: It contains something else.
    """
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
    gates: Sequence[Gate] = (),
    command: str = "",
) -> dict[str, Any]:
    """Benchmarks candidates and writes ``directory``.

    Every process of ``work.ranks`` computes its share of images and features; the first one computes the figures and
    writes.

    Args:
        reference: Full-precision model.
        candidates: Sources by name.
        protocol: Settings.
        networks: Networks and further metrics.
        directory: Output folder.
        work: Processes and progress.
        pictures: Folder of the images; by default ``directory/pictures``.
        options: Loading options of the reference.
        gates: Bounds that every candidate should keep.
        command: Command line.

    Returns:
        The content of ``results.json`` in the first process, nothing in others.

    Raises:
        ValueError: The reference cannot be loaded, or ``directory`` contains something else.
    """
    require_bench_folder(directory)
    generated = generate_all(reference, candidates, protocol, pictures or directory / PICTURES, work, options=options)
    compute_all(generated, networks, work)
    document: dict[str, Any] = {}
    if work.ranks.leads:
        figures = bench_figures(generated, protocol.sets, networks, work.progress)
        checked = list(gate_results(gates, figures.candidates))
        document = bench_results(figures, generated, protocol, networks, gates=checked, command=command)
        write_values(bench_rows(figures, generated), directory / VALUES)
        write_whole(results_text(document), directory / RESULTS)
        write_whole(render_report(document, figures, generated), directory / REPORT)
    work.ranks.wait()
    return document
