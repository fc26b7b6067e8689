"""Which steps matter: each denoising step is disturbed alone, and the pictures that follow are compared.

The perturbation analysis of PCR (arXiv 2311.06322, section 3.3), from which it takes which end to relax.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from torch import nn

from bitbrush.artifact.quantization import require_inputs
from bitbrush.bench.generation import denoiser_calls
from bitbrush.bench.metrics.clip_score import clip_score
from bitbrush.bench.metrics.counts import FEWEST_DECIDING
from bitbrush.bench.metrics.image_mse import image_mse
from bitbrush.bench.metrics.interval import Interval, bootstrap_difference, bootstrap_mean, median_interval
from bitbrush.bench.metrics.psnr import psnr
from bitbrush.bench.networks.clip import Clip
from bitbrush.calibration.ranges import ActivationBits, Calibration
from bitbrush.network.families import denoiser_name, family_of
from bitbrush.network.inputs import InputObserver, fake_quantize_input
from bitbrush.network.layers import layer_specs
from bitbrush.numerics.affine import AffineGrid
from bitbrush.numerics.ranges import RangeEstimator
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.progress import Advance, Progress, silent
from bitbrush.timeline.trajectory import DenoiserCall, PromptBatch, start

Disturb: TypeAlias = Callable[[nn.Module, DenoiserCall, Any], Any]
"""From the denoiser, one of its calls and the right output to a disturbed output."""

ANOTHER_PICTURE = 30.0
"""In dB: pairs farther apart do not show the same picture, as those of two seeds do not (about 20)."""
END_SHARE = 0.2
"""The share of the steps at either end that a recommendation weighs: the paper's tau."""


@dataclass(frozen=True)
class StepSensitivity:
    """What disturbing one denoiser call alone does to the pictures; ``match``: the change of their CLIP score."""

    step: int
    timestep: float
    psnr_by_picture: tuple[float, ...]
    psnr: Interval
    image_mse: Interval
    match: Interval


@dataclass(frozen=True)
class Recommendation:
    """The interval to relax, as ``--relax`` takes it before the bits; None where neither end stands out."""

    relax: str | None
    reason: str


@dataclass(frozen=True)
class _Clean:
    """An undisturbed run of one batch: its pictures, and the timestep and output of every denoiser call."""

    images: NDArray[np.uint8]
    timesteps: list[float]
    outputs: list[Any]


class QuantizedActivations:
    """Disturbs a step by giving its layers their inputs in ``bits`` bits, with the best range of that very input.

    Weights stay in floating point: relaxing gives steps more activation bits, so it is theirs that count.
    """

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
        grids = self._calibration.grids(observer, call.timestep, (call.timestep,))
        with _quantized(denoiser, grids):
            return call.run(denoiser)


class RelativeNoise:
    """Disturbs a step by normal noise of a share of the output's own size, the same for every step.

    Unlike quantization it errs equally at all steps, and so shows how the sampler alone weighs them.
    """

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


def step_sensitivities(
    pipe: DiffusionPipeline,
    batches: Sequence[PromptBatch],
    plan: SamplingPlan,
    disturb: Disturb,
    clip: Clip,
    *,
    every: int = 1,
    progress: Progress = silent,
) -> list[StepSensitivity]:
    """Of every ``every``-th denoiser call, in order; of pipelines that call twice in a step, each call by itself.

    The pipeline's own call is run once clean and once per disturbed step, which takes the clean outputs up to that step
    and computes from there on: about T²/2 denoiser calls per prompt batch in all, instead of T².
    """
    component = denoiser_name(pipe)
    require_inputs(pipe, batches[0].inputs)
    with progress("undisturbed", denoiser_calls(pipe, plan, batches[0])) as advance:
        first = _run_clean(pipe, component, batches[0], plan, advance)
    count = len(first.outputs)  # known now alone: there may be more calls than steps
    steps = range(0, count, every)
    calls = sum(count - step for step in steps) + count
    pictures: dict[int, list[NDArray[np.uint8]]] = {step: [] for step in steps}
    clean: list[NDArray[np.uint8]] = []
    with progress("disturbing", calls * len(batches) - count) as advance:
        for index, batch in enumerate(batches):
            run = _run_clean(pipe, component, batch, plan, advance) if index else first
            clean.append(run.images)
            for step in steps:
                pictures[step].append(_run_disturbed(pipe, component, batch, plan, run, step, disturb, advance))
    reference = np.concatenate(clean)
    texts = clip.text_features([prompt for batch in batches for prompt in batch.prompts])
    matching = clip_score(clip.features(reference), texts)
    return [
        _sensitivity(step, first.timesteps[step], reference, np.concatenate(pictures[step]), texts, matching, clip)
        for step in steps
    ]


def recommend(sensitivities: Sequence[StepSensitivity]) -> Recommendation:
    """The end whose steps cost the usual picture more: the median over pictures of the difference in mean PSNR.

    Not the mean of errors, which the few pictures make that turn into another one; how many do so is told.
    """
    count = max(1, round(END_SHARE * len(sensitivities)))
    first, last = (_psnr(end) for end in (sensitivities[:count], sensitivities[-count:]))
    median, low, high = median_interval(first.mean(0) - last.mean(0))
    turned = [f"{(end.min(0) < ANOTHER_PICTURE).sum()} of {end.shape[1]}" for end in (first, last)]
    match = [np.mean([one.match.mean for one in end]) for end in (sensitivities[:count], sensitivities[-count:])]
    if first.shape[1] < FEWEST_DECIDING:
        few = f"{first.shape[1]} prompts are too few to tell; {FEWEST_DECIDING} or more bound a median"
        return Recommendation(None, few)
    told = (
        f"disturbing a step of the last fifth (x0) costs the usual picture {median:.1f} dB ({low:.1f} to {high:.1f}) "
        f"more than one of the first fifth (xT); pictures below {ANOTHER_PICTURE:g} dB: {turned[0]} by the first "
        f"fifth, {turned[1]} by the last; change of the CLIP score: {match[0]:+.2f} and {match[1]:+.2f}"
    )
    if low <= 0 <= high:
        return Recommendation(None, f"neither end stands out: {told}")
    return Recommendation("0.8:1" if median > 0 else "0:0.2", told)


def _psnr(end: Sequence[StepSensitivity]) -> NDArray[np.float64]:
    """(steps, pictures)."""
    return np.array([one.psnr_by_picture for one in end])


def _run_clean(
    pipe: DiffusionPipeline, component: str, batch: PromptBatch, plan: SamplingPlan, advance: Advance
) -> _Clean:
    timesteps, outputs = [], []
    with start(pipe, component, batch, plan, output_type="np") as trajectory:
        while (call := trajectory.request) is not None:
            timesteps.append(call.timestep)
            outputs.append(call.run(getattr(pipe, component)))
            trajectory.answer(_copied(outputs[-1]))
            advance()
        return _Clean(_pixels(trajectory.result), timesteps, outputs)


def _run_disturbed(
    pipe: DiffusionPipeline,
    component: str,
    batch: PromptBatch,
    plan: SamplingPlan,
    clean: _Clean,
    disturbed: int,
    disturb: Disturb,
    advance: Advance,
) -> NDArray[np.uint8]:
    denoiser = getattr(pipe, component)
    with start(pipe, component, batch, plan, output_type="np") as trajectory:
        step = 0
        while (call := trajectory.request) is not None:
            if step < disturbed:
                output = _copied(clean.outputs[step])
            elif step == disturbed:
                output = disturb(denoiser, call, clean.outputs[step])
                advance()
            else:
                output = call.run(denoiser)
                advance()
            trajectory.answer(output)
            step += 1
        return _pixels(trajectory.result)


def _sensitivity(
    step: int,
    timestep: float,
    reference: NDArray[np.uint8],
    images: NDArray[np.uint8],
    texts: NDArray[np.float32],
    matching: NDArray[np.float64],
    clip: Clip,
) -> StepSensitivity:
    fidelity = psnr(reference, images)
    return StepSensitivity(
        step=step,
        timestep=timestep,
        psnr_by_picture=tuple(fidelity.tolist()),
        psnr=bootstrap_mean(fidelity, resamples=2000),
        image_mse=bootstrap_mean(image_mse(reference, images), resamples=2000),
        match=bootstrap_difference(matching, clip_score(clip.features(images), texts), resamples=2000),
    )


def _copied(output: Any) -> Any:
    """The pipeline may write into what it is given."""
    return tuple(part.clone() for part in output)


def _pixels(images: Any) -> NDArray[np.uint8]:
    """Of the pipeline's own pictures in [0, 1]; NaN becomes black."""
    pixels: NDArray[np.uint8] = np.round(np.nan_to_num(images) * 255).astype(np.uint8)
    return pixels


@contextmanager
def _quantized(denoiser: nn.Module, grids: dict[str, AffineGrid]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, grid in grids.items():
            stack.callback(fake_quantize_input(denoiser.get_submodule(name), partial(_constant, grid)).remove)
        yield


def _constant(grid: AffineGrid) -> AffineGrid:
    return grid
