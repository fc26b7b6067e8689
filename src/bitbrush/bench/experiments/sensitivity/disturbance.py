"""Images after disturbing one denoising step, by quantizing its activations or by noise."""

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
from bitbrush.timeline.trajectory import DenoiserCall, PromptBatch, prediction

UNDISTURBED, DISTURBING = "undisturbed", "disturbing"
"""Titles of progress reports."""


class Disturbance(Protocol):
    """Function that computes a disturbed output of a denoiser call.

    Attributes:
        description: Description for reports.
        calls: Cost in denoiser calls.
    """

    description: str
    calls: int

    def __call__(self, denoiser: nn.Module, call: DenoiserCall, output: Any) -> Any:
        """Returns the disturbed output of ``call``; ``output`` is the undisturbed one."""


class QuantizedActivations:
    """Disturbance that quantizes the inputs of a step's layers to ``bits`` bits, with the best range of each input.

    Weights stay in floating point, because relaxing changes the bits of activations alone.
    """

    calls = 3  # an observed call, which costs twice a plain one, and a quantized call

    def __init__(self, pipe: DiffusionPipeline, bits: int) -> None:
        family = family_of(pipe)
        specs = layer_specs(getattr(pipe, family.component), family, weight_bits=8)
        self._calibration = Calibration(specs, ActivationBits(bits), RangeEstimator.L4)
        self.description = f"activations of one step in {bits} bits"

    def __call__(self, denoiser: nn.Module, call: DenoiserCall, output: Any) -> Any:
        """Returns the output with quantized inputs."""
        observer = InputObserver()
        names = [spec.name for spec in self._calibration.layers]
        with observer.watching(denoiser, names):
            call.run(denoiser)
        all_qparams = self._calibration.qparams(observer, call.timestep, (call.timestep,))
        with quantized_inputs(denoiser, names, all_qparams.get):
            return call.run(denoiser)


class RelativeNoise:
    """Disturbance by normal noise of a share of the output's standard deviation, the same for every step.

    Unlike quantization it has the same error at all steps, and so shows how the sampler alone weights them.
    """

    calls = 0

    def __init__(self, share: float, seed: int) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"noise is {share:g}; a share of the output's size is above 0 and at most 1, e.g. 0.02")
        self._share, self._seed = share, seed
        self.description = f"noise of {share:g} of the output's size in one step"

    def __call__(self, denoiser: nn.Module, call: DenoiserCall, output: Any) -> Any:
        """Returns the output with noise added."""
        generator = torch.Generator().manual_seed(self._seed)
        predicted = prediction(output)
        noise = torch.randn(predicted.shape, generator=generator).to(predicted)
        noisy = predicted + self._share * predicted.std() * noise
        return (list(noisy) if isinstance(output[0], list) else noisy, *output[1:])


@dataclass(frozen=True)
class DisturbedImages:
    """Images of all batches.

    Args:
        timesteps: Timesteps of all denoiser calls.
        undisturbed: Images of the clean runs, (N, H, W, 3).
        disturbed: Images (N, H, W, 3) by the index of the disturbed call.
    """

    timesteps: tuple[float, ...]
    undisturbed: NDArray[np.uint8]
    disturbed: Mapping[int, NDArray[np.uint8]]


def disturbing_works(calls: int, batches: Sequence[PromptBatch], every: int, disturb: Disturbance) -> list[PlannedWork]:
    """Lists the work that :func:`disturbed_images` reports, for a pipeline of ``calls`` denoiser calls."""
    prompts = sum(len(batch.prompts) for batch in batches) / len(batches)
    total = calls * (len(batches) - 1) + len(batches) * sum(
        _cost(calls, step, disturb) for step in range(0, calls, every)
    )
    return [PlannedWork(UNDISTURBED, calls, prompts), PlannedWork(DISTURBING, total, prompts)]


def disturbed_images(
    pipe: DiffusionPipeline,
    batches: Sequence[PromptBatch],
    plan: SamplingPlan,
    disturb: Disturbance,
    *,
    every: int,
    progress: Progress,
    journal: Journal,
) -> DisturbedImages:
    """Disturbs every ``every``-th denoiser call alone.

    The pipeline runs once undisturbed and once per disturbed call. A disturbed run replays the undisturbed outputs up
    to its call and computes from there on: about T²/2 denoiser calls per prompt batch instead of T². The journal stores
    each run's images. Stored runs are not repeated, except the undisturbed run of a batch with missing ones.
    """
    runs, pieces, clean = _Runs(pipe, denoiser_name(pipe), plan, disturb), _Pieces.of(journal), None
    planned_calls = denoiser_calls(pipe, plan, batches[0])
    progress = planned(progress, lambda: disturbing_works(planned_calls, batches, every, disturb))
    if _clean_piece(0) not in pieces.stored:
        with progress(UNDISTURBED, planned_calls) as advance:
            clean = runs.clean(batches[0], advance)
        pieces.add(_clean_piece(0), clean.tensors)
    timesteps = pieces.stored[_clean_piece(0)]["timesteps"].tolist()
    calls = len(timesteps)  # known only now: there may be more calls than steps
    steps = range(0, calls, every)
    missing = {index: pieces.missing(index, steps) for index in range(len(batches))}
    begun = [index for index, of_batch in missing.items() if of_batch or _clean_piece(index) not in pieces.stored]
    total = calls * (len(begun) - (clean is not None))
    total += sum(_cost(calls, step, disturb) for of_batch in missing.values() for step in of_batch)
    with progress(DISTURBING, total) as advance:
        for index in begun:
            clean = clean or runs.clean(batches[index], advance)
            pieces.add(_clean_piece(index), clean.tensors)
            for step in missing[index]:
                images = runs.disturbed(batches[index], clean, step, advance)
                pieces.add(_piece(index, step), {"images": torch.from_numpy(images)})
            clean = None
    return DisturbedImages(
        tuple(timesteps),
        pieces.images(map(_clean_piece, missing)),
        {step: pieces.images(_piece(index, step) for index in missing) for step in steps},
    )


@dataclass(frozen=True)
class _Pieces:
    """Runs in the journal and those added since; a journal without a folder stores nothing."""

    journal: Journal
    stored: dict[str, dict[str, Tensor]]

    @classmethod
    def of(cls, journal: Journal) -> "_Pieces":
        return cls(
            journal, {piece: tensors for piece in journal.pieces() if (tensors := journal.read(piece)) is not None}
        )

    def add(self, piece: str, tensors: dict[str, Tensor]) -> None:
        if piece not in self.stored:
            self.journal.write(piece, tensors)
            self.stored[piece] = tensors

    def missing(self, batch: int, steps: Iterable[int]) -> list[int]:
        return [step for step in steps if _piece(batch, step) not in self.stored]

    def images(self, pieces: Iterable[str]) -> NDArray[np.uint8]:
        return np.concatenate([self.stored[piece]["images"].numpy() for piece in pieces])


def _clean_piece(batch: int) -> str:
    return f"undisturbed-{batch:04d}"


def _piece(batch: int, step: int) -> str:
    return f"disturbed-{batch:04d}-{step:04d}"


def _cost(calls: int, step: int, disturb: Disturbance) -> int:
    """Counts the denoiser calls of a run whose call ``step`` is disturbed."""
    return disturb.calls + calls - step - 1


@dataclass(frozen=True)
class _Clean:
    """Undisturbed run of one batch: images, and the timestep and output of every denoiser call."""

    images: NDArray[np.uint8]
    timesteps: list[float]
    outputs: list[Any]

    @property
    def tensors(self) -> dict[str, Tensor]:
        timesteps = torch.tensor(self.timesteps, dtype=torch.float64)
        return {"images": torch.from_numpy(self.images), "timesteps": timesteps}


@dataclass(frozen=True)
class _Runs:
    """Runs of the pipeline whose denoiser calls are answered one by one."""

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
    """Converts the pipeline's images in [0, 1] to uint8; NaN becomes black."""
    pixels: NDArray[np.uint8] = np.round(np.nan_to_num(images) * 255).astype(np.uint8)
    return pixels
