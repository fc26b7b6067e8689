"""The demo: the bundled pipeline quantized by two methods, images side by side, and their figures."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline

from bitbrush.artifact.manifest import read_manifest
from bitbrush.artifact.sizes import denoiser_sizes
from bitbrush.artifact.store import load, save
from bitbrush.bench.experiments.demo.page import demo_page
from bitbrush.bench.experiments.demo.results import BASELINE, METHOD, DemoRun, demo_results, demo_rows
from bitbrush.bench.experiments.folders import require_own
from bitbrush.bench.experiments.value_table import VALUES, write_values
from bitbrush.bench.images.generation import Generated, generate, generating_work
from bitbrush.bench.pages.page import render_page
from bitbrush.methods import METHODS
from bitbrush.methods.recipe import Recipe
from bitbrush.quantization.quantize import (
    Quantization,
    planned_work,
    prepare,
    quantize,
)
from bitbrush.session.disk import write_whole
from bitbrush.session.outputs import claimed
from bitbrush.session.progress import (
    PlannedWork,
    Progress,
    planned,
    silent,
)
from bitbrush.sources.models import load_full_precision
from bitbrush.sources.prompts import DEFAULT_CALIBRATION_SET
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import PromptBatch, prompt_batches
from bitbrush.zoo import prompt_set

MODEL = "emoji-sd"
STYLES = ("coco", "sdp")
SEED = 1
BATCH_SIZE = 16
PAGE, RESULTS = "index.html", "results.json"


def run_demo(
    directory: Path,
    progress: Progress = silent,
    *,
    keys: Mapping[str, Any] = MappingProxyType({}),
    pairs: int = 16,
) -> Path:
    """Writes two artifacts, ``results.json`` and the page into ``directory``; an earlier demo there is replaced.

    Full precision, ``rtn`` and ``best`` at W4A8 are compared on held-out prompts of each style.

    Args:
        directory: Folder of the demo.
        progress: Receives what was done.
        keys: Recipe keys that both methods get.
        pairs: Number of prompts of each style.

    Returns:
        Path of the page.

    Raises:
        ValueError: ``directory`` holds something else than a demo, or another process writes there.
    """
    artifacts = {name: directory / f"{MODEL}-{name}" for name in (BASELINE, METHOD)}
    with claimed(directory):
        require_own(directory, (PAGE, RESULTS, VALUES, *(path.name for path in artifacts.values())), "demo")
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory, _run(artifacts, _recipes(keys), pairs, progress))
    return directory / PAGE


def _run(artifacts: Mapping[str, Path], recipes: Mapping[str, Recipe], pairs: int, progress: Progress) -> DemoRun:
    pipe = load_full_precision(MODEL)
    progress = planned(progress, lambda: _works(pipe, recipes, pairs))
    prompts = prompt_set(MODEL, DEFAULT_CALIBRATION_SET, "calibration")
    quantized = {name: quantize(pipe, recipe, prompts, progress=progress) for name, recipe in recipes.items()}
    pipes = {name: _saved(quantized[name], path) for name, path in artifacts.items()}
    batches, plan = _batches(pairs, SEED), recipes[METHOD].plan
    return DemoRun(
        model=MODEL,
        seed=SEED,
        prompts={style: prompt_set(MODEL, style, "test")[:pairs] for style in STYLES},
        quantized=quantized,
        sizes={name: denoiser_sizes(read_manifest(path)) for name, path in artifacts.items()},
        reference=_generate(pipe, batches, plan, progress),
        other_seed=_generate(pipe, _batches(pairs, SEED + 1), plan, progress),
        candidates={name: _generate(other, batches, plan, progress) for name, other in pipes.items()},
    )


def _write(directory: Path, run: DemoRun) -> None:
    write_values(demo_rows(run), directory / VALUES)
    write_whole(demo_results(run), directory / RESULTS)
    write_whole(render_page(demo_page(run)), directory / PAGE)


def _recipes(keys: Mapping[str, Any]) -> dict[str, Recipe]:
    return {name: METHODS[name].recipe({"weights": 4, "activations": 8, **keys}) for name in (BASELINE, METHOD)}


def _works(pipe: DiffusionPipeline, recipes: Mapping[str, Recipe], pairs: int) -> list[PlannedWork]:
    """Lists the work that will be reported: two quantizations, and images of them and two of full precision."""
    prompts = prompt_set(MODEL, DEFAULT_CALIBRATION_SET, "calibration")
    works = [work for recipe in recipes.values() for work in planned_work(prepare(pipe, recipe, prompts))]
    batches = [batch for style in _batches(pairs, SEED).values() for batch in style]
    return [*works, *[generating_work(pipe, batches, recipes[METHOD].plan)] * (2 + len(recipes))]


def _saved(quantization: Quantization, directory: Path) -> DiffusionPipeline:
    """Saves the artifact and loads it as anyone who has it will run it."""
    return load(save(quantization, directory, base_model=MODEL))


def _batches(pairs: int, seed: int) -> dict[str, list[PromptBatch]]:
    return {style: prompt_batches(prompt_set(MODEL, style, "test")[:pairs], seed, BATCH_SIZE) for style in STYLES}


def _generate(
    pipe: DiffusionPipeline, batches: Mapping[str, list[PromptBatch]], plan: SamplingPlan, progress: Progress
) -> dict[str, Generated]:
    everything = generate(pipe, [batch for style in batches.values() for batch in style], plan, progress=progress)
    ends = np.cumsum([sum(len(batch.prompts) for batch in style) for style in batches.values()])[:-1]
    parts = zip(np.split(everything.images, ends), np.split(everything.steps, ends), strict=True)
    return {style: Generated(*part) for style, part in zip(batches, parts, strict=True)}
