"""Evidence for a model card: the time of a denoiser call on this machine, and the figures of a benchmark."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from bitbrush.bench.experiments.results import interval_of
from bitbrush.bench.images.generation import generate
from bitbrush.bench.pages.number_format import format_interval, format_number
from bitbrush.network.families import denoiser_name
from bitbrush.runtime.lowered import lowered_of
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import prompt_batches

PROMPTS = ("an apple", "a pear", "a red car")
"""Texts of the timed images; the first one warms up."""
STEPS = 8
_CPU = Path("/proc/cpuinfo")


def call_time(pipe: DiffusionPipeline, plan: SamplingPlan) -> str:
    """Measures a denoiser call as the pipeline makes it for one image, and says how and where.

    Args:
        pipe: Pipeline of an artifact.
        plan: Sampling plan; at most ``STEPS`` steps of it are run.

    Returns:
        Text such as ``1.31 s per denoiser call (median of 16, one image at a time, ...)``.
    """
    short = replace(plan, steps=min(plan.steps, STEPS))
    denoiser: nn.Module = getattr(pipe, denoiser_name(pipe))
    batches = prompt_batches(PROMPTS, 0, 1)
    generate(pipe, batches[:1], short)
    with timed(denoiser) as seconds:
        generate(pipe, batches[1:], short)
    lowered = lowered_of(denoiser)
    runtime = "torch: float32" if lowered is None else lowered.name
    value = median(seconds)
    text = f"{format_number(value, digits=3)} s" if value >= 1 else f"{format_number(1000 * value, digits=3)} ms"
    return f"{text} per denoiser call (median of {len(seconds)}, one image at a time); {runtime}; {_machine()}"


@contextmanager
def timed(denoiser: nn.Module, clock: Callable[[], float] | None = None) -> Iterator[list[float]]:
    """Yields a list that receives the seconds of every call of the denoiser, by ``clock`` or else in real time."""
    now = clock or _now
    begun: list[float] = []
    seconds: list[float] = []
    handles = [
        denoiser.register_forward_pre_hook(lambda *_: begun.append(now())),
        denoiser.register_forward_hook(lambda *_: seconds.append(now() - begun[-1])),
    ]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def _machine() -> str:
    if torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    lines = _CPU.read_text(encoding="utf-8").splitlines() if _CPU.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} of {os.cpu_count()} processor cores"


def bench_table(results: Path, digest: str) -> str:
    """Returns the figures of an artifact in the results of ``bitbrush bench`` as Markdown.

    Args:
        results: ``results.json``, or its folder.
        digest: Digest of the artifact, by which its candidate is found.

    Returns:
        A sentence on the protocol, and for each prompt set a table of means with their 95 % intervals.

    Raises:
        ValueError: The file holds no results of a benchmark, or none of this artifact.
    """
    path = results / "results.json" if results.is_dir() else results
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        candidates = {one.get("digest"): one for one in document["candidates"]}
        protocol, floor = document["protocol"], document["floor"]["sets"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no results of bitbrush bench ({type(error).__name__}: {error})") from error
    if digest not in candidates:
        names = ", ".join(str(one.get("name")) for one in candidates.values()) or "none"
        raise ValueError(
            f"{path} has no figures of this artifact (its candidates: {names}); run bitbrush bench with it first"
        )
    candidate = candidates[digest]
    verdict = (candidate.get("verdict") or {}).get("level")
    parts = [_protocol(protocol) + (f" Verdict: {verdict}." if verdict else "")]
    parts += [_table(name, one["figures"], floor[name]["figures"]) for name, one in candidate["sets"].items()]
    return "\n\n".join(parts)


def _protocol(protocol: Mapping[str, Any]) -> str:
    return (
        f"`bitbrush bench` against full precision, image by image from the same noise: {protocol['steps']} steps, "
        f"guidance {protocol['guidance_scale']:g}, {protocol['scheduler']}, seeds "
        f"{', '.join(map(str, protocol['seeds']))}. Mean (95 % interval). *Another seed* is full precision "
        "against itself from other noise."
    )


def _table(name: str, figures: Mapping[str, Any], floor: Mapping[str, Any]) -> str:
    count = next(iter(figures.values()))["n"]
    rows = [f"| {name}, {count} images | this artifact | another seed |", "|---|---|---|"]
    for metric, entry in figures.items():
        other = _cell(floor[metric]) if metric in floor else "-"
        rows.append(f"| {metric} | {_cell(entry)} | {other} |")
    return "\n".join(rows)


def _cell(entry: Mapping[str, Any]) -> str:
    mean, between = format_interval(interval_of(entry))
    return f"{mean} ({between})" if between else mean
