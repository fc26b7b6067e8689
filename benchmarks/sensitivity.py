"""Where activation quantization hurts: which layers, at which steps, and which steps the pictures suffer from.

    python benchmarks/sensitivity.py layers     # error of the denoiser's output, by layer group and step
    python benchmarks/sensitivity.py steps      # PSNR when a fifth of the steps alone is quantized
    python benchmarks/sensitivity.py drift      # how far progressive ranges are from one-shot ranges

Weights stay in float32 and the ranges are one-shot, so that nothing but activations is seen. Calibrated on 16 prompts,
measured on 32 other calibration prompts: no test prompt is looked at. Prints Markdown; up to five minutes each.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

import bitbrush
from bitbrush.bench.images.generation import generate
from bitbrush.bench.metrics.interval import bootstrap_mean
from bitbrush.bench.metrics.psnr import psnr
from bitbrush.calibration.observe import (
    ActivationBits,
    Calibration,
    Observations,
    observe,
)
from bitbrush.calibration.one_pass import one_shot_schedules
from bitbrush.calibration.progressive import calibrate_progressively
from bitbrush.network.inputs import fake_quantize_input
from bitbrush.network.layers import layer_specs
from bitbrush.network.unet import UNET
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.limits import RangeEstimator
from bitbrush.runtime.forward import compute_in
from bitbrush.session.session import Session
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.schedule import ActivationSchedule
from bitbrush.timeline.tracker import TRACKER
from bitbrush.timeline.trajectory import DenoiserCall, carried, pending, prompt_batches
from bitbrush.zoo import prompt_set

MODEL = "emoji-sd"
PLAN = SamplingPlan()
STEPS_SHOWN = (0, 10, 20, 30, 40, 45, 50)
FIFTHS = 5
GROUPS: dict[str, Callable[[str], bool]] = {
    "conv_in": lambda name: name == "conv_in",
    "shortcut of the last block": lambda name: name == "up_blocks.2.resnets.1.conv_shortcut",
    "other shortcuts": lambda name: "conv_shortcut" in name and not name.startswith("up_blocks.2.resnets.1"),
    "first conv of blocks": lambda name: ".conv1" in name,
    "second conv of blocks": lambda name: ".conv2" in name,
    "feed-forward": lambda name: ".ff." in name,
    "attention projections": lambda name: ".attn" in name,
    "time embedding": lambda name: "time_emb" in name,
}


class Bench:
    """The pipeline, what its layers are given on 16 calibration prompts, and 32 other prompts."""

    def __init__(self) -> None:
        self.pipe = bitbrush.load_full_precision(MODEL)
        prompts = prompt_set(MODEL, "coco", "calibration")
        self.seen = prompt_batches(prompts[:16], 0, 16)
        self.unseen = prompt_batches(prompts[128:160], 0, 16)
        self.specs = layer_specs(self.pipe.unet, UNET, weight_bits=8)
        self.observations = self._observe()

    def _observe(self) -> Observations:
        calibration = Calibration(self.specs, ActivationBits(8), RangeEstimator.L4)
        with carried(self.pipe, UNET.component, self.seen, PLAN) as trajectories:
            return observe(self.pipe.unet, calibration, trajectories, Session())

    def schedules(self, bits: int, *, high_precision_names: int | None = None) -> Mapping[str, ActivationSchedule]:
        """Every layer with the same bits, edge layers with ``high_precision_names`` of their own if that is given."""
        schedules = one_shot_schedules(self._calibration(bits), self.observations)
        if high_precision_names is not None:
            names = UNET.high_precision_layers(self.pipe.unet)
            schedules |= {
                n: one_shot_schedules(self._calibration(high_precision_names), self.observations)[n] for n in names
            }
        return schedules

    def _calibration(self, bits: int) -> Calibration:
        plain = tuple(replace(spec, high_precision=False) for spec in self.specs)
        return Calibration(plain, ActivationBits(bits), RangeEstimator.L4)

    def calls(self) -> dict[int, list[DenoiserCall]]:
        """Denoiser calls on full-precision trajectories of the unseen prompts, of the steps that are shown."""
        kept: dict[int, list[DenoiserCall]] = {}
        with carried(self.pipe, UNET.component, self.unseen, PLAN) as trajectories:
            step = 0
            while waiting := pending(trajectories):
                if step in STEPS_SHOWN:
                    kept[step] = waiting
                for trajectory, call in zip(trajectories, waiting, strict=True):
                    trajectory.answer(call.run(self.pipe.unet))
                step += 1
        return kept


@contextmanager
def quantized(denoiser: nn.Module, names: Sequence[str], qparams: Callable[[str], QParams | None]) -> Iterator[None]:
    with ExitStack() as stack:
        for name in names:
            stack.callback(fake_quantize_input(denoiser.get_submodule(name), partial(qparams, name)).remove)
        yield


def layers() -> None:
    bench = Bench()
    denoiser = bench.pipe.unet
    calls = bench.calls()
    wanted = {step: [call.run(denoiser)[0] for call in waiting] for step, waiting in calls.items()}
    names = [spec.name for spec in bench.specs]
    eight, ten, edged = bench.schedules(8), bench.schedules(10), bench.schedules(8, high_precision_names=16)

    def row(label: str, chosen: Sequence[str], schedules: Mapping[str, ActivationSchedule]) -> None:
        cells = []
        for step, waiting in calls.items():
            all_qparams = {name: schedules[name].at(waiting[0].timestep) for name in chosen}
            with quantized(denoiser, chosen, all_qparams.get):
                pairs = [(call.run(denoiser)[0], y) for call, y in zip(waiting, wanted[step], strict=True)]
            error = sum(float((x - y).square().mean()) for x, y in pairs)
            cells.append(f"{1e3 * error / sum(float(y.square().mean()) for _, y in pairs):.4f}")
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)

    print("Squared error of the denoiser's output over its power, thousandths\n")
    print("| quantized | " + " | ".join(f"step {step}" for step in calls) + " |")
    print("|---|" + "---|" * len(calls))
    row("all, 8 bits", names, eight)
    row("all, 8 bits, edge layers 16", names, edged)
    row("conv_in alone, 10 bits", ["conv_in"], ten)
    for label, belongs in GROUPS.items():
        row(f"{label}, 8 bits", [name for name in names if belongs(name)], eight)


def steps() -> None:
    bench = Bench()
    pipe = bench.pipe
    reference = generate(pipe, bench.unseen, PLAN)
    planned = sorted(bench.observations, reverse=True)
    names = [spec.name for spec in bench.specs]
    compute_in(pipe.unet, torch.float32)
    fifths = [set(planned[len(planned) * k // FIFTHS : len(planned) * (k + 1) // FIFTHS]) for k in range(FIFTHS)]
    print("PSNR to full precision, dB, when these steps alone are quantized\n")
    print("| bits | " + " | ".join(f"{k / FIFTHS:g} to {(k + 1) / FIFTHS:g}" for k in range(FIFTHS)) + " | all |")
    print("|---|" + "---|" * (FIFTHS + 1))
    for bits in (8, 6):
        schedules = bench.schedules(bits, high_precision_names=16)
        cells = []
        for part in [*fifths, set(planned)]:
            with quantized(pipe.unet, names, partial(_qparams_within, part, schedules)):
                images = generate(pipe, bench.unseen, PLAN).images
            interval = bootstrap_mean(psnr(reference.images, images))
            cells.append(f"{interval.mean:.1f} ({interval.low:.1f} to {interval.high:.1f})")
            print(".", end="", file=sys.stderr, flush=True)
        print(f"| A{bits} | " + " | ".join(cells) + " |", flush=True)


def drift() -> None:
    """Change of the width of each layer's range, of the calibration prompts' own trajectories at that."""
    bench = Bench()
    timesteps = sorted(bench.observations, reverse=True)
    fifths = [timesteps[len(timesteps) * k // FIFTHS : len(timesteps) * (k + 1) // FIFTHS] for k in range(FIFTHS)]
    print("Change of a range's width by progressive calibration, percent: median (95th percentile)\n")
    print("| bits | " + " | ".join(f"{k / FIFTHS:g} to {(k + 1) / FIFTHS:g}" for k in range(FIFTHS)) + " |")
    print("|---|" + "---|" * FIFTHS)
    for bits in (8, 6, 4):
        calibration = Calibration(bench.specs, ActivationBits(bits), RangeEstimator.L4)
        one_shot = one_shot_schedules(calibration, bench.observations)
        with carried(bench.pipe, UNET.component, bench.seen, PLAN) as trajectories:
            progressive = calibrate_progressively(bench.pipe.unet, calibration, trajectories, Session())
        cells = []
        for part in fifths:
            changes = [
                abs(np.ptp(progressive[spec.name].at(t).range) / np.ptp(one_shot[spec.name].at(t).range) - 1)
                for spec in bench.specs
                for t in part
            ]
            cells.append(f"{100 * np.median(changes):.2f} ({100 * np.quantile(changes, 0.95):.1f})")
        print(f"| A{bits} | " + " | ".join(cells) + " |", flush=True)


def _qparams_within(part: set[float], schedules: Mapping[str, ActivationSchedule], name: str) -> QParams | None:
    return schedules[name].now() if TRACKER.timestep in part else None


if __name__ == "__main__":
    {"layers": layers, "steps": steps, "drift": drift}[sys.argv[1]]()
