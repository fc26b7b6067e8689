"""How much the quantization of each layer, at each step, moves the final latents: what bits are given out by.

PCR (arXiv 2311.06322, section 3.3) disturbs single steps and relaxes an end of them by hand. Here each layer's input at
each step, and each layer's weight, is told apart, in three parts: (1) a clean run; (2) what quantizing a segment of
its steps does to the final latents, by running the rest of the pipeline; (3) which layers made these steps' output
errors, by :mod:`bitbrush.calibration.probe`, at some steps. Errors of different layers and segments are taken to be
independent: their squares add up. Within a segment they are not: neighbouring steps err alike, which steps disturbed
one by one do not show (``benchmarks/sensitivity.py steps`` disturbs fifths of them).

Every picture counts alike: its errors are divided by what all segments do to it. (Otherwise the few that turn into
another picture own the sum, and bits go where they are decided.)
"""

import bisect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from bitbrush.calibration.observe import quantized_inputs, run_observed
from bitbrush.calibration.probe import Candidates, guided, probe
from bitbrush.calibration.propagation import CleanRun, Propagation
from bitbrush.network.inputs import InputObserver
from bitbrush.numerics.affine import AffineGrid
from bitbrush.numerics.limits import RangeEstimator, WeightRange
from bitbrush.numerics.ranges import find_qparams
from bitbrush.numerics.weights import WeightGrid, weight_grid
from bitbrush.session.session import Session
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import DenoiserCall, PromptBatch, join, planned_timesteps

ACTIVATION_CHOICES = (4, 6, 8, 10, 16)
WEIGHT_CHOICES = (2, 3, 4, 5, 6, 7, 8)
BOUNDS = (0.0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8, 15 / 16, 31 / 32, 1.0)
"""Of the segments, as fractions of the denoiser calls: short at the ends, where errors change most."""
MEASURED_PROMPTS = 8
PROBES = 2
LEAST = 1e-30
"""Stands for no error at all where a logarithm is taken."""


@dataclass(frozen=True)
class Sensitivities:
    """Squared errors of the final latents, each picture's divided by what quantizing all steps does to it.

    ``inputs`` (denoiser calls, layers, ACTIVATION_CHOICES), ``weights`` (layers, WEIGHT_CHOICES), of the layers in
    order. ``products`` (layers,): multiplications of one prompt's denoiser call.
    """

    timesteps: tuple[float, ...]
    layers: tuple[str, ...]
    inputs: Tensor
    weights: Tensor
    products: Tensor


@dataclass(frozen=True)
class Measurement:
    """``layers`` to be told apart; ``bits`` of the activations with which a segment is quantized."""

    pipe: Any
    component: str
    plan: SamplingPlan
    layers: tuple[str, ...]
    bits: int
    activation_range: RangeEstimator
    weight_range: WeightRange

    @property
    def denoiser(self) -> nn.Module:
        denoiser: nn.Module = getattr(self.pipe, self.component)
        return denoiser


def measured_batch(batches: Sequence[PromptBatch]) -> PromptBatch:
    """The first 8 prompts, of the first batch if that has fewer."""
    return join(batches)[: min(MEASURED_PROMPTS, len(batches[0].prompts))]


def segments(calls: int) -> tuple[range, ...]:
    """The denoiser calls of a pipeline in up to ten parts, all of them covered."""
    ends = sorted({round(bound * calls) for bound in BOUNDS})
    return tuple(range(begin, end) for begin, end in itertools.pairwise(ends))


def probed_calls(calls: int) -> tuple[int, ...]:
    """Those at which layers are told apart: the middle of each segment; the first and the last of all as well."""
    middles = {(segment.start + segment.stop - 1) // 2 for segment in segments(calls)}
    return tuple(sorted({0, calls - 1} | middles))


def sensitivity_calls(calls: int) -> int:
    """Denoiser calls of :func:`measure_sensitivities` where the pipeline makes so many, a probe being one."""
    return 2 * calls + sum(calls - segment.start - 1 for segment in segments(calls)) + PROBES * len(probed_calls(calls))


@torch.no_grad()
def measure_sensitivities(measurement: Measurement, batch: PromptBatch, session: Session) -> Sensitivities:
    """Of the denoiser as it is, on the trajectories of ``batch``."""
    planned = planned_timesteps(measurement.pipe, measurement.component, measurement.plan, batch)
    with session.progress("measuring sensitivities", sensitivity_calls(len(planned))) as advance:

        def count() -> None:
            session.count_call()
            advance()

        network = _Network(measurement, count)
        propagation = Propagation(measurement.pipe, measurement.component, measurement.plan)
        run = propagation.clean(batch, network.observed)
        importance = _importance(propagation, network, run)
        inputs, weights = _probe_all(network, run, importance)
    at = list(probed_calls(len(run.calls)))
    return Sensitivities(
        timesteps=tuple(call.timestep for call in run.calls),
        layers=measurement.layers,
        inputs=_between(inputs, at, len(run.calls)),
        weights=_between(weights, at, len(run.calls)).sum(0),
        products=torch.tensor([float(network.products[name]) for name in measurement.layers]) / len(batch.prompts),
    )


class _Network:
    """The denoiser, run as it is, observed, or with quantized inputs; ``count`` is called after every call.

    ``products`` of a call by layer, for all rows; ``grids`` by layer, of each observed call.
    """

    def __init__(self, measurement: Measurement, count: Callable[[], None]) -> None:
        self.measurement, self.denoiser, self.count = measurement, measurement.denoiser, count
        self.products: dict[str, int] = {}
        self.grids: list[dict[str, AffineGrid]] = []
        self._observers: list[InputObserver] = []

    def plain(self, _: int, call: DenoiserCall) -> Any:
        output = run_observed(call, self.denoiser)
        self.count()
        return output

    def observed(self, index: int, call: DenoiserCall) -> Any:
        layers, observer = self.measurement.layers, InputObserver()
        self.products = dict.fromkeys(layers, 0)
        with observer.watching(self.denoiser, layers), _counting_products(self.denoiser, self.products):
            output = self.plain(index, call)
        self._observers.append(observer)
        own = self._found(observer, (self.measurement.bits,))
        self.grids.append({name: grid for name, (grid,) in own.items()})
        return output

    def quantized(self, index: int, call: DenoiserCall) -> Any:
        with quantized_inputs(self.denoiser, self.measurement.layers, self.grids[index].get):
            return self.plain(index, call)

    def choices(self, index: int) -> dict[str, list[AffineGrid]]:
        """Of every layer, the grids of ACTIVATION_CHOICES at an observed call."""
        return self._found(self._observers[index], ACTIVATION_CHOICES)

    def _found(self, observer: InputObserver, bits: Sequence[int]) -> dict[str, list[AffineGrid]]:
        layers = self.measurement.layers
        histograms = [observer.histogram(name) for name in layers for _ in bits]
        found = iter(find_qparams(self.measurement.activation_range, histograms, list(bits) * len(layers)))
        return {name: [next(found) for _ in bits] for name in layers}


@contextmanager
def _counting_products(denoiser: nn.Module, products: dict[str, int]) -> Iterator[None]:
    """Adds the multiplications of each layer's calls to ``products``."""

    def count(name: str, layer: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
        weight = layer.get_parameter("weight")
        products[name] += output.numel() // weight.shape[0] * weight.numel()

    with ExitStack() as stack:
        for name in products:
            stack.callback(denoiser.get_submodule(name).register_forward_hook(partial(count, name)).remove)
        yield


def _importance(propagation: Propagation, network: _Network, run: CleanRun) -> Tensor:
    """(denoiser calls, prompts): what one unit of squared output error in a call does to the picture."""
    prompts, guidance = len(run.batch.prompts), network.measurement.plan.guidance_scale
    disturbed = [network.quantized(index, call) for index, call in enumerate(run.calls)]
    errors = torch.stack(
        [
            guided(wrong[0] - right[0], prompts, guidance).flatten(1).square().sum(1).view(-1, prompts).sum(0)
            for wrong, right in zip(disturbed, run.outputs, strict=True)
        ]
    )
    importance = torch.empty_like(errors)
    total = errors.new_zeros(prompts)
    for segment in segments(len(run.calls)):

        def answer(index: int, call: DenoiserCall, first: int = segment.start) -> Any:
            return disturbed[index] if index == first else network.quantized(index, call)

        effect = propagation.effect(run, segment, answer, network.plain)
        importance[segment.start : segment.stop] = effect / errors[segment.start : segment.stop].sum(0).clamp_min(LEAST)
        total += effect
    return importance / total.clamp_min(LEAST)


def _probe_all(network: _Network, run: CleanRun, importance: Tensor) -> tuple[Tensor, Tensor]:
    """(probed calls, layers, choices), of inputs and of weights."""
    measurement, generator = network.measurement, Generator().manual_seed(0)
    names, guidance = measurement.layers, measurement.plan.guidance_scale
    grids = {name: _weight_grids(network.denoiser, name, measurement.weight_range) for name in names}
    inputs, weights = [], []
    for index in probed_calls(len(run.calls)):
        candidates, found = Candidates(network.choices(index), grids), []
        for _ in range(PROBES):
            found.append(probe(network.denoiser, run.calls[index], candidates, importance[index], guidance, generator))
            network.count()
        inputs.append(_mean([one.inputs for one in found], names))
        weights.append(_mean([one.weights for one in found], names))
    return torch.stack(inputs), torch.stack(weights)


def _weight_grids(denoiser: nn.Module, name: str, estimator: WeightRange) -> list[WeightGrid]:
    weight = denoiser.get_submodule(name).get_parameter("weight").detach()
    return [weight_grid(weight, bits, estimator) for bits in WEIGHT_CHOICES]


def _mean(found: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> Tensor:
    """(layers, choices)."""
    return torch.stack([torch.stack([one[name] for one in found]).mean(0) for name in names])


def _between(measured: Tensor, at: Sequence[int], calls: int) -> Tensor:
    """From (measured calls, ...) to (all calls, ...), the logarithm being linear in between."""
    logarithm = measured.clamp_min(LEAST).log()
    rows = []
    for call in range(calls):
        after = min(bisect.bisect_left(at, call), len(at) - 1)
        before = max(after - 1, 0)
        share = (call - at[before]) / (at[after] - at[before]) if after > before else 0.0
        rows.append(torch.lerp(logarithm[before], logarithm[after], share).exp())
    return torch.stack(rows)
