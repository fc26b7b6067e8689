"""Errors of single denoiser calls of ``emoji-sd`` on a runtime: ``python -m gpu.calls RUNTIME STEPS``.

Every call has the latents of the reference's own trajectory, so that errors don't accumulate over the steps.
Errors are relative to the norm of the reference's prediction, each the median over the calls of plain and of relaxed
steps:

- ``runtime``: the runtime against the reference, which computes the same integers in float32;
- ``bfloat16``: the reference with layer outputs rounded to bfloat16, which the runtime does as well;
- ``quantization``: the reference against full precision.

A runtime passes if its error is at most 1.5 times bfloat16's. That of quantization is there to compare with: in relaxed
steps it is no larger than bfloat16's, so that no bfloat16 runtime could stay below a share of it. Prints JSON.
One-shot W8A8 with the last fifth of the steps relaxed, the first prompts of the test set.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import bitbrush
from bitbrush.bench.images.generation import generate
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import prompt_batches
from bitbrush.zoo import prompt_set

MODEL, PROMPTS, SEED = "emoji-sd", 4, 1
BFLOAT16_TIMES = 1.5
RELAXED_FROM = 0.8
Call: TypeAlias = tuple[tuple[Any, ...], Mapping[str, Any], Tensor]
"""Positional and named arguments, and the prediction."""


def main() -> None:
    runtime, steps = sys.argv[1], int(sys.argv[2])
    prompts = prompt_set(MODEL, "coco", "test")[:PROMPTS]
    recipe = bitbrush.METHODS["one-shot"].recipe(
        {"weights": 8, "relax": f"{RELAXED_FROM}:1@10", "steps": steps, "num_prompts": PROMPTS, "batch_size": PROMPTS}
    )
    full = bitbrush.load_full_precision(MODEL)
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        folder = bitbrush.save(bitbrush.quantize(full, recipe, prompts), f"{scratch}/artifact", base_model=MODEL)
        denoiser = bitbrush.load(folder, runtime="reference").unet
        calls = _recorded(folder, prompts, recipe.plan)
        errors = {
            "runtime": _errors(bitbrush.load(folder, runtime=runtime).unet, calls),
            "quantization": _errors(full.unet, calls),
            "bfloat16": _errors(_rounding_outputs(denoiser), calls),
        }
    print(json.dumps({"name": runtime, "steps": steps, **_judged(errors)}))


def _recorded(folder: Path, prompts: Sequence[str], plan: SamplingPlan) -> list[Call]:
    """Records the reference's denoiser calls: arguments and prediction."""
    reference, calls = bitbrush.load(folder, runtime="reference"), list[Call]()
    reference.unet.register_forward_hook(lambda _, args, named, y: calls.append((args, named, y[0])), with_kwargs=True)
    generate(reference, prompt_batches(prompts, SEED, PROMPTS), plan)
    return calls


def _rounding_outputs(denoiser: nn.Module) -> nn.Module:
    """Makes every layer and norm round its output to bfloat16."""
    for module in denoiser.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.GroupNorm | nn.LayerNorm):
            module.register_forward_hook(lambda _, __, y: y.bfloat16().float())
    return denoiser


def _errors(denoiser: nn.Module, calls: Sequence[Call]) -> NDArray[np.float64]:
    """Computes the relative error of every call, ``|y - reference| / |reference|``."""
    predictions = (denoiser(*args, **named)[0].cpu().float() for args, named, _ in calls)
    return np.array([float((y - call[2]).norm() / call[2].norm()) for y, call in zip(predictions, calls, strict=True)])


def _judged(errors: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Takes the medians of plain and of relaxed steps, and judges both."""
    relaxed = round(RELAXED_FROM * len(errors["runtime"]))
    parts = {"plain": slice(None, relaxed), "relaxed": slice(relaxed, None)}
    medians = {
        part: {name: float(np.median(values[at])) for name, values in errors.items()} for part, at in parts.items()
    }
    passed = all(row["runtime"] <= BFLOAT16_TIMES * row["bfloat16"] for row in medians.values())
    return {"passed": passed, **medians}


if __name__ == "__main__":
    main()
