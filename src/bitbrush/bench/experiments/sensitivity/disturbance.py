"""Pictures of which one denoising step was disturbed: by quantizing its activations, or by noise."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from torch import Tensor, nn

from bitbrush.bench.images.generation import denoiser_calls
from bitbrush.calibration.observe import ActivationBits, Calibration, quantized_inputs
from bitbrush.network.families import denoiser_name, family_of
from bitbrush.network.inputs import InputObserver
from bitbrush.network.layers import layer_specs
from bitbrush.numerics.limits import RangeEstimator
from bitbrush.session.journal import Journal
from bitbrush.session.progress import (
    Advance,
    PlannedWork,
    Progress,
    planned,
)
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.replay import Answer, disturbed_answer, run_answered
from bitbrush.timeline.trajectory import DenoiserCall, PromptBatch

UNDISTURBED, DISTURBING = "undisturbed", "disturbing"
"""Titles under which progress is reported."""


class Disturbance(Protocol):
    """Computes a disturbed output from the denoiser, one of its calls and the right output.

    Attributes:
        description: Of what it does, for reports.
        calls: Denoiser calls that it is worth.
    """

    description: str
    calls: int

    def __call__(self, denoiser: nn.Module, call: DenoiserCall, right: Any) -> Any: ...


class QuantizedActivations:
    """Disturbs a step by giving its layers their inputs in ``bits`` bits, with the best range of that very input.

    Weights stay in floating point: relaxing gives steps more activation bits, so it is theirs that count.
    """

    calls = 3  # one observed, which costs as much again, and one quantized

    def __init__(self, pipe: DiffusionPipeline, bits: int) -> None:
        family = family_of(pipe)
        specs = layer_specs(getattr(pipe, family.component), family, weight_bits=8)
        self._calibration = Calibration(specs, ActivationBits(bits), RangeEstimator.L4)
        self.description = f"activations of one step in {bits} bits"

    def __call__(self, denoiser: nn.Module, call: DenoiserCall, right: Any) -> Any:
        observer = InputObserver()
        names = [spec.name for spec in self._calibration.layers]
        with observer.watching(denoiser, names):
            call.run(denoiser)
        all_qparams = self._calibration.qparams(observer, call.timestep, (call.timestep,))
        with quantized_inputs(denoiser, names, all_qparams.get):
            return call.run(denoiser)


class RelativeNoise:
    """Disturbs a step by normal noise of a share of the output's own size, the same for every step.

    Unlike quantization it errs equally at all steps, and so shows how the sampler alone weighs them.
    """

    calls = 0

    def __init__(self, share: float, seed: int) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"noise is {share:g}; a share of the output's size is above 0 and at most 1, e.g. 0.02")
        self._share, self._seed = share, seed
        self.description = f"noise of {share:g} of the output's size in one step"

    def __call__(self, denoiser: nn.Module, call: DenoiserCall, right: Any) -> Any:
        generator = torch.Generator().manual_seed(self._seed)
        (output, *rest) = right
        noise = torch.randn(output.shape, generator=generator).to(output)
        return (output + self._share * output.std() * noise, *rest)


@dataclass(frozen=True)
class DisturbedPictures:
    """Pictures (N, H, W, 3) of all batches: ``undisturbed``, and by the index of the ``disturbed`` denoiser call.

    ``timesteps``: of all calls.
    """

    timesteps: tuple[float, ...]
    undisturbed: NDArray[np.uint8]
    disturbed: Mapping[int, NDArray[np.uint8]]


def disturbing_works(calls: int, batches: Sequence[PromptBatch], every: int, disturb: Disturbance) -> list[PlannedWork]:
    """What :func:`disturbed_pictures` will report of, where the pipeline makes so many calls."""
    prompts = sum(len(batch.prompts) for batch in batches) / len(batches)
    total = calls * (len(batches) - 1) + len(batches) * sum(
        _cost(calls, step, disturb) for step in range(0, calls, every)
    )
    return [PlannedWork(UNDISTURBED, calls, prompts), PlannedWork(DISTURBING, total, prompts)]


def disturbed_pictures(
    pipe: DiffusionPipeline,
    batches: Sequence[PromptBatch],
    plan: SamplingPlan,
    disturb: Disturbance,
    *,
    every: int,
    progress: Progress,
    journal: Journal,
) -> DisturbedPictures:
    """Disturbs every ``every``-th denoiser call alone.

    The pipeline's own call is run once clean and once per disturbed step, which takes the clean outputs up to that step
    and computes from there on: about T²/2 denoiser calls per prompt batch in all, instead of T². Each run's pictures
    are a piece of ``journal``; those that it holds are not made again, but for the clean run of a batch of which others
    are missing.
    """
    run, pieces, clean = _Run(pipe, denoiser_name(pipe), plan, disturb), _Pieces.of(journal), None
    planned_calls = denoiser_calls(pipe, plan, batches[0])
    progress = planned(progress, lambda: disturbing_works(planned_calls, batches, every, disturb))
    if _clean_piece(0) not in pieces.found:
        with progress(UNDISTURBED, planned_calls) as advance:
            clean = run.clean(batches[0], advance)
        pieces.keep(_clean_piece(0), clean.tensors)
    timesteps = pieces.found[_clean_piece(0)]["timesteps"].tolist()
    calls = len(timesteps)  # known now alone: there may be more than steps
    steps = range(0, calls, every)
    missing = {index: pieces.missing(index, steps) for index in range(len(batches))}
    begun = [index for index, own in missing.items() if own or _clean_piece(index) not in pieces.found]
    total = calls * (len(begun) - (clean is not None))
    total += sum(_cost(calls, step, disturb) for own in missing.values() for step in own)
    with progress(DISTURBING, total) as advance:
        for index in begun:
            clean = clean or run.clean(batches[index], advance)
            pieces.keep(_clean_piece(index), clean.tensors)
            for step in missing[index]:
                images = run.disturbed(batches[index], clean, step, advance)
                pieces.keep(_piece(index, step), {"images": torch.from_numpy(images)})
            clean = None
    return DisturbedPictures(
        tuple(timesteps),
        pieces.images(map(_clean_piece, missing)),
        {step: pieces.images(_piece(index, step) for index in missing) for step in steps},
    )


@dataclass(frozen=True)
class _Pieces:
    """What is in the journal, and what came since: a journal without a folder gives nothing back."""

    journal: Journal
    found: dict[str, dict[str, Tensor]]

    @classmethod
    def of(cls, journal: Journal) -> "_Pieces":
        return cls(journal, {piece: kept for piece in journal.pieces() if (kept := journal.read(piece)) is not None})

    def keep(self, piece: str, tensors: dict[str, Tensor]) -> None:
        if piece not in self.found:
            self.journal.write(piece, tensors)
            self.found[piece] = tensors

    def missing(self, batch: int, steps: Iterable[int]) -> list[int]:
        return [step for step in steps if _piece(batch, step) not in self.found]

    def images(self, pieces: Iterable[str]) -> NDArray[np.uint8]:
        return np.concatenate([self.found[piece]["images"].numpy() for piece in pieces])


def _clean_piece(batch: int) -> str:
    return f"undisturbed-{batch:04d}"


def _piece(batch: int, step: int) -> str:
    return f"disturbed-{batch:04d}-{step:04d}"


def _cost(calls: int, step: int, disturb: Disturbance) -> int:
    """Denoiser calls of a run whose call ``step`` is disturbed."""
    return disturb.calls + calls - step - 1


@dataclass(frozen=True)
class _Clean:
    """An undisturbed run of one batch: its pictures, and the timestep and output of every denoiser call."""

    images: NDArray[np.uint8]
    timesteps: list[float]
    outputs: list[Any]

    @property
    def tensors(self) -> dict[str, Tensor]:
        timesteps = torch.tensor(self.timesteps, dtype=torch.float64)
        return {"images": torch.from_numpy(self.images), "timesteps": timesteps}


@dataclass(frozen=True)
class _Run:
    """Runs of the pipeline, its denoiser calls answered one by one."""

    pipe: DiffusionPipeline
    component: str
    plan: SamplingPlan
    disturb: Disturbance

    def clean(self, batch: PromptBatch, advance: Advance) -> _Clean:
        timesteps: list[float] = []
        outputs: list[Any] = []

        def answer(index: int, call: DenoiserCall) -> Any:
            timesteps.append(call.timestep)
            outputs.append(self._undisturbed(advance, index, call))
            return outputs[-1]

        return _Clean(self._images(batch, answer), timesteps, outputs)

    def disturbed(self, batch: PromptBatch, clean: _Clean, step: int, advance: Advance) -> NDArray[np.uint8]:
        def disturbed(index: int, call: DenoiserCall) -> Any:
            output = self.disturb(getattr(self.pipe, self.component), call, clean.outputs[index])
            for _ in range(self.disturb.calls):
                advance()
            return output

        undisturbed = partial(self._undisturbed, advance)
        return self._images(batch, disturbed_answer(clean.outputs, range(step, step + 1), disturbed, undisturbed))

    def _undisturbed(self, advance: Advance, _: int, call: DenoiserCall) -> Any:
        output = call.run(getattr(self.pipe, self.component))
        advance()
        return output

    def _images(self, batch: PromptBatch, answer: Answer) -> NDArray[np.uint8]:
        return _pixels(run_answered(self.pipe, self.component, batch, self.plan, answer, output_type="np"))


def _pixels(images: Any) -> NDArray[np.uint8]:
    """Of the pipeline's own pictures in [0, 1]; NaN becomes black."""
    pixels: NDArray[np.uint8] = np.round(np.nan_to_num(images) * 255).astype(np.uint8)
    return pixels
