"""What stages do to the error of single steps on emoji-sd: W4 with 16-, 8- and 4-bit activations, no step relaxed.

    python benchmarks/stages.py      # five minutes on one core; prints Markdown

Six steps of the full-precision trajectories of held-out prompts (coco test prompts 400 to 415), ranges observed on
those of 8 calibration prompts: squared error of the denoiser's output in parts of its own mean square, geometric mean
over the steps. Weights are rounded as by ``pcr``, or to nearest; of the layers that are ``high_precision`` the 8-bit
weights are rounded to nearest.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import bitbrush
from bitbrush.calibration.observe import quantized_inputs
from bitbrush.methods.stages import rounded_weights, with_weights
from bitbrush.methods.state import Job
from bitbrush.network.inputs import InputObserver
from bitbrush.quantization.quantize import quantization_job
from bitbrush.rounding.nearest import RoundedLayer, round_all_to_nearest
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import DenoiserCall, carried, prompt_batches
from bitbrush.zoo import prompt_set

MODEL = "emoji-sd"
STEPS = (0, 10, 25, 40, 47, 50)
BITS = (16, 8, 4)
STAGES: dict[str, dict[str, Any]] = {
    "pcr": {},
    'high_precision = ["time_embedding.*", "*.time_emb_proj"]': {
        "high_precision": ["time_embedding.*", "*.time_emb_proj"]
    },
    'first_token = "known"': {"first_token": "known"},
    "nearest": {"rounding": "nearest"},
}


@dataclass
class Bench:
    pipe: Any = field(default_factory=lambda: bitbrush.load_full_precision(MODEL))
    learned: dict[str, RoundedLayer] = field(default_factory=dict)

    def record(self, prompts: list[str], seed: int) -> dict[int, tuple[DenoiserCall, Tensor]]:
        """Calls and outputs of full precision at STEPS."""
        kept = {}
        (batch,) = prompt_batches(prompts, seed, len(prompts))
        with carried(self.pipe, "unet", [batch], SamplingPlan()) as (trajectory,):
            index = 0
            while (call := trajectory.request) is not None:
                output = call.run(self.pipe.unet)
                if index in STEPS:
                    kept[index] = call, output[0].clone()
                trajectory.answer(output)
                index += 1
        return kept

    def job(self, keys: Mapping[str, Any], bits: int) -> Job:
        recipe = bitbrush.METHODS["pcr"].recipe({"activations": bits, "relax": "none", **keys})
        return quantization_job(self.pipe, recipe, prompt_set(MODEL, "coco", "calibration"))

    def rounded(self, job: Job) -> dict[str, RoundedLayer]:
        """Learned ones once; the layers of which the job wants other bits to nearest."""
        if job.recipe.rounding == "nearest":
            return dict(rounded_weights(job))
        self.learned = self.learned or dict(rounded_weights(self.job({}, BITS[0])))
        layers = job.calibration.layers
        others = [spec for spec in layers if spec.weight_bits != self.learned[spec.name].weight.qparams.bits]
        return self.learned | round_all_to_nearest(job.denoiser, others, job.recipe.weight_range)


def errors(bench: Bench, keys: Mapping[str, Any], seen: Mapping[int, Any], held: Mapping[int, Any]) -> list[float]:
    """By BITS."""
    jobs = [bench.job(keys, bits) for bits in BITS]
    rounded = bench.rounded(jobs[0])
    known = quantization_job(bench.pipe, jobs[0].recipe, prompt_set(MODEL, "coco", "calibration"), rounded=rounded)
    denoiser = with_weights(bench.pipe.unet, rounded_weights(known))
    logs = dict.fromkeys(BITS, 0.0)
    for step in STEPS:
        observer, names = InputObserver(), [spec.name for spec in known.calibration.layers]
        call, exact = held[step]
        with observer.watching(denoiser, names, known.calibration.but_first):
            seen[step][0].run(denoiser)
        for bits, job in zip(BITS, jobs, strict=True):
            all_qparams = job.calibration.qparams(observer, call.timestep, call.planned)
            with quantized_inputs(denoiser, names, all_qparams.get):
                error = call.run(denoiser)[0] - exact
            logs[bits] += math.log(float(error.square().mean() / exact.square().mean())) / len(STEPS)
    return [math.exp(log) for log in logs.values()]


@torch.no_grad()
def main() -> None:
    bench = Bench()
    seen = bench.record(list(prompt_set(MODEL, "coco", "calibration")[:8]), 0)
    held = bench.record(list(prompt_set(MODEL, "coco", "test")[400:416]), 1)
    print(f"| | {' | '.join(f'W4A{bits}' for bits in BITS)} |\n|---|{'---|' * len(BITS)}")
    for name, keys in STAGES.items():
        print(f"| {name} | {' | '.join(f'{error:.3g}' for error in errors(bench, keys, seen, held))} |", flush=True)


if __name__ == "__main__":
    main()
