"""How far out a text's start token must be for ``first_token = "known"`` to help: emoji-sd, its start token scaled.

    python benchmarks/start_token.py      # two minutes on one core; prints Markdown

Only cross-attention's keys and values see quantized inputs; weights are in 8 bits, rounded to nearest. Squared error of
the denoiser's output in parts of its own mean square, geometric mean over five steps of full-precision trajectories of
held-out prompts (coco test prompts 400 to 403); ranges observed on those of 4 calibration prompts.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

import bitbrush
from bitbrush.calibration.observe import quantized_inputs
from bitbrush.methods.stages.round_weights import record_trajectories, round_weights
from bitbrush.network.first_token import start_token_ratio, text_embedding
from bitbrush.network.inputs import InputObserver
from bitbrush.quantization.quantize import prepare
from bitbrush.rounding.nearest import with_weights
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import DenoiserCall, carried, prompt_batches
from bitbrush.zoo import prompt_set

MODEL = "emoji-sd"
PROMPTS = 4
STEPS = (0, 10, 25, 40, 50)
FACTORS = (1, 2, 4, 8, 16, 64)
BITS = (8, 6, 4)
KEYS = {"relax": "none", "rounding": "nearest", "weights": 8}


def scaled_pipeline(factor: float) -> Any:
    def scale(_: nn.Module, __: Any, y: Tensor) -> Tensor:
        return torch.cat([factor * y[:, :1], y[:, 1:]], 1)

    pipe = bitbrush.load_full_precision(MODEL)
    encoder = pipe.text_encoder
    getattr(encoder, "text_model", encoder).final_layer_norm.register_forward_hook(scale)
    return pipe


def record(pipe: Any, prompts: tuple[str, ...], seed: int) -> list[tuple[DenoiserCall, Tensor]]:
    """Calls and outputs of full precision at STEPS."""
    found = []
    with carried(pipe, "unet", prompt_batches(prompts, seed, PROMPTS), SamplingPlan()) as (trajectory,):
        while (call := trajectory.request) is not None:
            output = call.run(pipe.unet)
            found.append((call, output[0].clone()))
            trajectory.answer(output)
    return [found[step] for step in STEPS]


def error(pipe: Any, first_token: str, bits: int, seen: list[Any], held_out: list[Any]) -> float:
    recipe = bitbrush.METHODS["pcr"].recipe({**KEYS, "first_token": first_token, "activations": bits})
    state = round_weights(record_trajectories(prepare(pipe, recipe, prompt_set(MODEL, "coco", "calibration"))))
    denoiser, calibration = with_weights(pipe.unet, state.rounded), state.calibration
    text_layers = state.family.text_layers(pipe.unet)
    log = 0.0
    for (observed, _), (call, exact) in zip(seen, held_out, strict=True):
        observer, names = InputObserver(), [spec.name for spec in calibration.layers]
        with observer.watching(denoiser, names, calibration.but_first):
            observed.run(denoiser)
        all_qparams = calibration.qparams(observer, call.timestep, call.planned)
        with quantized_inputs(denoiser, text_layers, all_qparams.get):
            wrong = call.run(denoiser)[0] - exact
        log += math.log(float(wrong.square().mean() / exact.square().mean())) / len(STEPS)
    return math.exp(log)


@torch.no_grad()
def main() -> None:
    columns = [f"A{bits} {name}" for bits in BITS for name in ("quantized", "known")]
    print(f"| scaled by | ratio | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for factor in FACTORS:
        pipe = scaled_pipeline(factor)
        seen = record(pipe, prompt_set(MODEL, "coco", "calibration")[:PROMPTS], 0)
        held_out = record(pipe, prompt_set(MODEL, "coco", "test")[400 : 400 + PROMPTS], 1)
        text = text_embedding(pipe.unet, seen[0][0])
        assert text is not None
        ratio = start_token_ratio(text)
        errors = [error(pipe, name, bits, seen, held_out) for bits in BITS for name in ("quantized", "known")]
        print(f"| {factor} | {ratio:.2f} | {' | '.join(f'{one:.2g}' for one in errors)} |", flush=True)


if __name__ == "__main__":
    main()
