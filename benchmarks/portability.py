"""What it costs to run an artifact with another scheduler and step count than it was calibrated for.

    python benchmarks/portability.py     # prints a table; about four minutes on two cores

Three artifacts of emoji-sd, PCR at W4A8: calibrated for PNDM at 50 steps, for DPM++ 2M at 20 steps, and the first one
recalibrated for the latter. All run DPM++ 2M at 20 steps on held-out prompts; error: mean squared difference of the
final latents from full precision's under the same noise.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

import bitbrush
from bitbrush.artifact.schedulers import with_scheduler
from bitbrush.bench.generation import generate
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import prompt_batches
from bitbrush.zoo import prompt_set, prompt_sets

PROMPTS_PER_SET = 16
OTHER = {"steps": 20, "scheduler": "dpmpp_2m"}


def artifacts(calibration: tuple[str, ...], folder: Path) -> Iterator[tuple[str, float, DiffusionPipeline]]:
    """Name, seconds it took, pipeline."""
    recipe = bitbrush.METHODS["pcr"].recipe({"num_prompts": 8})
    began = time.perf_counter()
    usual = bitbrush.quantize(bitbrush.load_full_precision("emoji-sd"), recipe, calibration)
    yield "PNDM, 50 steps", time.perf_counter() - began, usual.pipeline()
    bitbrush.save(usual, folder / "usual", base_model="emoji-sd")
    began = time.perf_counter()
    exact = bitbrush.quantize(bitbrush.load_full_precision("emoji-sd"), recipe.updated(OTHER), calibration)
    yield "DPM++ 2M, 20 steps", time.perf_counter() - began, exact.pipeline()
    began = time.perf_counter()
    again = bitbrush.recalibrate(folder / "usual", OTHER, calibration)
    yield "the first, recalibrated", time.perf_counter() - began, again.pipeline()


def main() -> None:
    torch.set_num_threads(2)
    sets = [name for name, splits in prompt_sets("emoji-sd").items() if "test" in splits]
    prompts = [prompt for name in sets for prompt in prompt_set("emoji-sd", name, "test")[:PROMPTS_PER_SET]]
    batches, plan = prompt_batches(prompts, 1, 16), SamplingPlan(steps=20)

    def latents(pipe: DiffusionPipeline) -> np.ndarray:
        return generate(with_scheduler(pipe, "dpmpp_2m"), batches, plan).latents.reshape(len(prompts), -1)

    full = latents(bitbrush.load_full_precision("emoji-sd"))
    print(f"{len(prompts)} held-out prompts of {', '.join(sets)}; DPM++ 2M, 20 steps, guidance 7.5")
    print(f"{'calibrated for':26} {'seconds':>8} {'median MSE':>11} {'mean MSE':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds, pipe in artifacts(prompt_set("emoji-sd", "coco", "calibration"), Path(folder)):
            errors = np.square(latents(pipe) - full).mean(1)
            deviation = errors.std() / len(errors) ** 0.5
            print(
                f"{name:26} {seconds:8.0f} {np.median(errors):11.4f} {errors.mean():9.3f} ± {deviation:.3f}", flush=True
            )


if __name__ == "__main__":
    main()
