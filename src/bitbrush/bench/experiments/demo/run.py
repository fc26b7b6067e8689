"""The demo: the bundled pipeline quantized three ways, its pictures side by side, and what the figures say."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline

from bitbrush.artifact.manifest import read_manifest
from bitbrush.artifact.sizes import denoiser_sizes
from bitbrush.artifact.store import load, save
from bitbrush.bench.experiments.demo.page import write_page
from bitbrush.bench.experiments.demo.results import (
    SHOWN,
    Contest,
    demo_page,
    demo_results,
    demo_rows,
)
from bitbrush.bench.experiments.folders import require_own
from bitbrush.bench.experiments.value_table import VALUES, write_values
from bitbrush.bench.images.generation import Generated, generate, generating_work
from bitbrush.methods import METHODS
from bitbrush.methods.recipe import Recipe
from bitbrush.quantization.quantize import (
    Quantization,
    planned_work,
    prepare,
    quantize,
)
from bitbrush.session.disk import write_whole
from bitbrush.session.progress import (
    PlannedWork,
    Progress,
    planned,
    silent,
)
from bitbrush.sources.models import load_full_precision
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import PromptBatch, prompt_batches
from bitbrush.zoo import prompt_set

MODEL = "emoji-sd"
STYLES = ("coco", "sdp")
SEED = 1
BATCH_SIZE = 24
PAGE, RESULTS = "index.html", "results.json"


def run_demo(
    directory: Path,
    progress: Progress = silent,
    *,
    keys: Mapping[str, Any] = MappingProxyType({}),
    pairs: int = 24,
) -> Path:
    """Makes ``directory``: two artifacts, ``results.json`` and the page, whose path is the result.

    Compares full precision, ``rtn`` and ``pcr`` W4A8 on ``pairs`` held-out prompts of each style, and ``one-shot`` with
    pcr's weights, so that these two differ in the calibration alone. ``keys`` change the recipes of all three. A demo
    that stands there is replaced; raises ValueError if something else does.
    """
    require_own(directory, (PAGE, RESULTS, VALUES, f"{MODEL}-rtn", f"{MODEL}-pcr"), "demo")
    directory.mkdir(parents=True, exist_ok=True)
    pipe, recipes = load_full_precision(MODEL), _recipes(keys)
    progress = planned(progress, lambda: _works(pipe, recipes, pairs))
    quantized = _quantize(pipe, recipes, progress)
    plan = recipes["pcr"].plan
    artifacts = {name: directory / f"{MODEL}-{name}" for name in SHOWN}
    pipes = {name: _saved(quantized[name], artifact) for name, artifact in artifacts.items()}
    pipes["one-shot"] = quantized["one-shot"].pipeline()
    batches = _batches(pairs, SEED)
    contest = Contest(
        model=MODEL,
        seed=SEED,
        prompts={style: prompt_set(MODEL, style, "test")[:pairs] for style in STYLES},
        quantized=quantized,
        sizes={name: denoiser_sizes(read_manifest(artifact)) for name, artifact in artifacts.items()},
        reference=_generate(pipe, batches, plan, progress),
        other_seed=_generate(pipe, _batches(pairs, SEED + 1), plan, progress),
        candidates={name: _generate(other, batches, plan, progress) for name, other in pipes.items()},
    )
    write_values(demo_rows(contest), directory / VALUES)
    write_whole(demo_results(contest), directory / RESULTS)
    write_page(demo_page(contest), directory / PAGE)
    return directory / PAGE


def _recipes(keys: Mapping[str, Any]) -> dict[str, Recipe]:
    rtn, pcr = (METHODS[name].recipe({"weights": 4, "activations": 8, **keys}) for name in ("rtn", "pcr"))
    return {"rtn": rtn, "pcr": pcr, "one-shot": pcr.updated({"method": "one-shot"})}


def _works(pipe: DiffusionPipeline, recipes: Mapping[str, Recipe], pairs: int) -> list[PlannedWork]:
    """What the demo will report of: three quantizations, and pictures of them and two of full precision."""
    prompts = prompt_set(MODEL, "coco", "calibration")
    rtn, pcr, one_shot = (planned_work(prepare(pipe, one, prompts)) for one in recipes.values())
    batches = [batch for style in _batches(pairs, SEED).values() for batch in style]
    pictures = generating_work(pipe, batches, recipes["pcr"].plan)
    return [*rtn, *pcr, one_shot[-1], *[pictures] * (2 + len(recipes))]  # one-shot has pcr's weights


def _quantize(pipe: DiffusionPipeline, recipes: Mapping[str, Recipe], progress: Progress) -> dict[str, Quantization]:
    prompts = prompt_set(MODEL, "coco", "calibration")
    made = {name: quantize(pipe, recipes[name], prompts, progress=progress) for name in ("rtn", "pcr")}
    weights = made["pcr"].rounded
    return made | {"one-shot": quantize(pipe, recipes["one-shot"], prompts, rounded=weights, progress=progress)}


def _saved(quantization: Quantization, directory: Path) -> DiffusionPipeline:
    """The pipeline as anyone who is given the artifact will run it."""
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
