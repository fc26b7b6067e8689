"""What each stage of learned rounding is worth at four bits, and what it costs.

    python benchmarks/rounding.py        # prints a table; about four minutes on two cores

Error: squared error of the denoiser's output relative to its power, weights alone quantized, on full-precision
trajectories of calibration prompts that the rounding has not seen.
"""

import time
from collections.abc import Sequence
from contextlib import contextmanager

import torch
from torch import nn

import bitbrush
from bitbrush.network.families import family_of
from bitbrush.network.layers import layer_specs
from bitbrush.numerics.limits import WeightRange
from bitbrush.rounding import reconstruction
from bitbrush.rounding.learned import learn_rounding
from bitbrush.rounding.nearest import RoundedLayer, round_all_to_nearest, with_weights
from bitbrush.rounding.samples import record_samples
from bitbrush.session.session import Session
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import DenoiserCall, prompt_batches
from bitbrush.zoo import prompt_set

MODEL = "emoji-sd"
WEIGHT_BITS = 4


@contextmanager
def iterations(count: int):
    """Block reconstruction with another number of iterations; none leaves each layer as compensation rounded it."""
    usual, reconstruction.ITERATIONS = reconstruction.ITERATIONS, count
    try:
        yield
    finally:
        reconstruction.ITERATIONS = usual


def relative_error(full: nn.Module, rounded: dict[str, RoundedLayer], calls: Sequence[DenoiserCall]) -> float:
    quantized = with_weights(full, rounded)
    error = power = 0.0
    for call in calls:
        wanted = call.run(full)[0]
        error += float((call.run(quantized)[0] - wanted).square().mean())
        power += float(wanted.square().mean())
    return error / power


def main() -> None:
    pipe = bitbrush.load_full_precision(MODEL)
    family = family_of(pipe)
    prompts = prompt_set(MODEL, "coco", "calibration")
    seen, unseen = (
        record_samples(pipe, family, prompt_batches(part, 0, 16), SamplingPlan(), Session())
        for part in (prompts[:16], prompts[128:144])
    )
    specs = layer_specs(pipe.unet, family, weight_bits=WEIGHT_BITS)

    def learned(count: int) -> dict[str, RoundedLayer]:
        with iterations(count):
            return learn_rounding(pipe.unet, family, specs, WeightRange.MSE, seen, Session())

    stages = {
        "nearest, min-max ranges": lambda: round_all_to_nearest(pipe.unet, specs, WeightRange.MIN_MAX),
        "nearest, searched ranges": lambda: round_all_to_nearest(pipe.unet, specs, WeightRange.MSE),
        "compensated, layer by layer": lambda: learned(0),
        "compensated, then learned by block": lambda: learned(reconstruction.ITERATIONS),
    }
    print("| rounding | relative output error | seconds |\n|---|---|---|")
    for name, stage in stages.items():
        began = time.perf_counter()
        rounded = stage()
        seconds = time.perf_counter() - began
        print(f"| {name} | {relative_error(pipe.unet, rounded, unseen):.5f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
