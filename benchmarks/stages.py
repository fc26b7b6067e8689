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
from bitbrush.methods.stages.round_weights import record_trajectories, round_weights
from bitbrush.methods.state import QuantizationState
from bitbrush.network.inputs import InputObserver
from bitbrush.quantization.quantize import prepare
from bitbrush.rounding.nearest import RoundedLayer, round_all_to_nearest, with_weights
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

    def state(self, keys: Mapping[str, Any], bits: int) -> QuantizationState:
        recipe = bitbrush.METHODS["pcr"].recipe({"activations": bits, "relax": "none", **keys})
        return prepare(self.pipe, recipe, prompt_set(MODEL, "coco", "calibration"))

    def rounded(self, state: QuantizationState) -> dict[str, RoundedLayer]:
        """Weights learned once; layers with other bits than those are rounded to nearest."""
        if state.recipe.rounding == "nearest":
            return dict(round_weights(state).rounded)
        self.learned = self.learned or dict(round_weights(record_trajectories(self.state({}, BITS[0]))).rounded)
        layers = state.calibration.layers
        others = [spec for spec in layers if spec.weight_bits != self.learned[spec.name].weight.qparams.bits]
        return self.learned | round_all_to_nearest(state.denoiser, others, state.recipe.weight_range)


def errors(bench: Bench, keys: Mapping[str, Any], seen: Mapping[int, Any], held: Mapping[int, Any]) -> list[float]:
    """By BITS."""
    states = [bench.state(keys, bits) for bits in BITS]
    calibration = states[0].calibration
    denoiser = with_weights(bench.pipe.unet, bench.rounded(states[0]))
    logs = dict.fromkeys(BITS, 0.0)
    for step in STEPS:
        observer, names = InputObserver(), [spec.name for spec in calibration.layers]
        call, exact = held[step]
        with observer.watching(denoiser, names, calibration.but_first):
            seen[step][0].run(denoiser)
        for bits, state in zip(BITS, states, strict=True):
            all_qparams = state.calibration.qparams(observer, call.timestep, call.planned)
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
