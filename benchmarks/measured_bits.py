"""Measured bits against PCR at equal averages, on prompts that no other figure uses (coco test prompts 400 to 447).

    python benchmarks/measured_bits.py W8A8 W4A8 W4A6 W4A4           # a table; half an hour on two free cores
    python benchmarks/measured_bits.py --prompts 16 --recipes pcr,best W4A8

Recipes: ``pcr``; ``activations``: with measured activation bits; ``weights``: with measured weight bits; ``best``:
both. Weights are rounded once for each way of giving out their bits. Pictures are made by the integer kernels, all else
in float32, and paired with full precision by their noise. PSNR: mean and median; latent MSE: mean and geometric mean,
which tells of the usual picture where a few turn into another.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import bitbrush
from bitbrush import Quantization, Recipe
from bitbrush.bench.generation import Generated, generate
from bitbrush.bench.metrics.interval import bootstrap_mean
from bitbrush.bench.metrics.latent_mse import latent_mse
from bitbrush.bench.metrics.psnr import psnr
from bitbrush.rounding.nearest import RoundedLayer
from bitbrush.runtime.choose import RuntimeName, choose_runtime
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import PromptBatch, prompt_batches
from bitbrush.zoo import prompt_set

MODEL = "emoji-sd"
FIRST, PROMPTS, SEED = 400, 48, 1
ACTIVATIONS, WEIGHTS = {"relax": "auto"}, {"weight_allocation": "measured"}
RECIPES: dict[str, dict[str, str]] = {
    "pcr": {},
    "activations": ACTIVATIONS,
    "weights": WEIGHTS,
    "best": ACTIVATIONS | WEIGHTS,
}


def recipe(name: str, weights: int, activations: int) -> Recipe:
    """At the averages of pcr with these bits, which gives a fifth of the steps two more."""
    keys: dict[str, Any] = {"weights": weights, "activations": activations, **RECIPES[name]}
    if "relax" in keys:
        keys["relax"] = f"auto:{activations + 0.4:g}"
    return bitbrush.METHODS["pcr"].recipe(keys)


class Bench:
    def __init__(self, prompts: int) -> None:
        self.pipe = bitbrush.load_full_precision(MODEL)
        self.plan = SamplingPlan()
        self.batches: Sequence[PromptBatch] = prompt_batches(
            prompt_set(MODEL, "coco", "test")[FIRST : FIRST + prompts], SEED, prompts
        )
        self.reference = generate(self.pipe, self.batches, self.plan)
        self._rounded: dict[tuple[int, str], dict[str, RoundedLayer]] = {}

    def quantize(self, chosen: Recipe) -> Quantization:
        key = chosen.weights, str(chosen.weight_allocation)
        made = bitbrush.quantize(
            self.pipe, chosen, prompt_set(MODEL, "coco", "calibration"), rounded=self._rounded.get(key)
        )
        self._rounded.setdefault(key, made.rounded)
        return made

    def pictures(self, made: Quantization) -> Generated:
        pipe = made.pipeline()
        pipe.unet = bitbrush.load_full_precision(MODEL).unet
        choose_runtime(RuntimeName.AUTO, dtype=torch.float32).runtime.lower(pipe.unet, made.outcome.layers)
        return generate(pipe, self.batches, self.plan)


def _cells(reference: Generated, candidate: Generated) -> str:
    decibels = psnr(reference.images, candidate.images)
    errors = latent_mse(reference.latents, candidate.latents)
    mean, error = bootstrap_mean(decibels), bootstrap_mean(errors)
    return (
        f"{mean.mean:.2f} ({mean.low:.2f} to {mean.high:.2f}) | {np.median(decibels):.2f} | "
        f"{error.mean:.4f} ({error.low:.4f} to {error.high:.4f}) | {np.exp(np.log(errors).mean()):.5f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bits", nargs="+")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    given = parser.parse_args()
    bench = Bench(given.prompts)
    print("| bits | recipe | PSNR, dB | median | latent MSE | geometric mean | activation bits |")
    print("|---|---|---|---|---|---|---|")
    for bits in given.bits:
        found = re.fullmatch(r"W(\d)A(\d+)", bits)
        if not found:
            raise SystemExit(f"bits are {bits!r}; expected e.g. W4A8")
        for name in given.recipes.split(","):
            began = time.perf_counter()
            made = bench.quantize(recipe(name, int(found[1]), int(found[2])))
            cells = _cells(bench.reference, bench.pictures(made))
            print(f"| {bits} | {name} | {cells} | {made.average_activation_bits:.2f} |", flush=True)
            print(f"{bits} {name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
