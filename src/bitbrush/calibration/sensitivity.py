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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn

from bitbrush.calibration.observe import quantized_inputs, run_observed
from bitbrush.calibration.probe import Candidates, guided, probe
from bitbrush.calibration.propagation import CleanRun, Propagation
from bitbrush.network.inputs import InputObserver
from bitbrush.network.lazy_weights import device_of
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.limits import RangeEstimator, WeightRange
from bitbrush.numerics.ranges import find_qparams
from bitbrush.numerics.weights import WeightQParams, weight_qparams
from bitbrush.session.journal import Journal
from bitbrush.session.progress import Advance, PlannedWork, Progress
from bitbrush.session.session import Session
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import DenoiserCall, PromptBatch, join, planned_timesteps

Key = TypeVar("Key")

ACTIVATION_CHOICES = (4, 6, 8, 10, 16)
WEIGHT_CHOICES = (2, 3, 4, 5, 6, 7, 8)
BOUNDS = (0.0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8, 15 / 16, 31 / 32, 1.0)
"""Of the segments, as fractions of the denoiser calls: short at the ends, where errors change most."""
MEASURED_PROMPTS = 8
PROBES = 2
LEAST = 1e-30
"""Stands for no error at all where a logarithm is taken."""
CLEAN_RUN, DISTURBED_STEPS = "undisturbed steps", "disturbed steps"
WEIGHT_RANGES, PROBING = "weight ranges", "probing layers"
"""Titles under which the parts are reported."""
OBSERVED_COST, WEIGHT_RANGES_COST, PROBE_COST = 1.7, 2.0, 6.0
"""Denoiser calls that an observed one, a layer's weight ranges and a probe are worth, timed on emoji-sd."""
GENERATOR = "generator"


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
    return calls + _disturbed_calls(calls, segments(calls)) + PROBES * len(probed_calls(calls))


def _disturbed_calls(calls: int, measured: Iterable[range]) -> int:
    """Denoiser calls with quantized inputs, and those that follow: a segment's first disturbed output serves twice."""
    return sum(len(segment) + calls - segment.start - 1 for segment in measured)


def sensitivity_works(calls: int, prompts: int, layers: int) -> tuple[PlannedWork, ...]:
    """The parts of :func:`measure_sensitivities` as it reports them, where the pipeline makes so many calls."""
    return (
        PlannedWork(CLEAN_RUN, calls, OBSERVED_COST * prompts),
        PlannedWork(DISTURBED_STEPS, _disturbed_calls(calls, segments(calls)), prompts),
        PlannedWork(WEIGHT_RANGES, layers, WEIGHT_RANGES_COST),
        PlannedWork(PROBING, PROBES * len(probed_calls(calls)), PROBE_COST * prompts),
    )


@torch.no_grad()
def measure_sensitivities(measurement: Measurement, batch: PromptBatch, session: Session) -> Sensitivities:
    """Measures the denoiser as it is, on the trajectories of ``batch``.

    Each segment and each probed call is a piece of the journal: those that it holds are taken from it, the others go
    into it, and the result is the same. The clean run, which all of them start from, is made again.
    """
    progress, journal = session.progress, session.journal
    network = _Network(measurement, session)
    propagation = Propagation(measurement.pipe, measurement.component, measurement.plan)
    planned = planned_timesteps(measurement.pipe, measurement.component, measurement.plan, batch)
    with progress(CLEAN_RUN, len(planned)) as advance, network.reporting(advance):
        run = propagation.clean(batch, network.observed)
    importance = _importance(propagation, network, run, progress, journal)
    inputs, weights = _probe_all(network, run, importance, progress, journal)
    at = list(probed_calls(len(run.calls)))
    return Sensitivities(
        timesteps=tuple(call.timestep for call in run.calls),
        layers=measurement.layers,
        inputs=_between(inputs, at, len(run.calls)),
        weights=_between(weights, at, len(run.calls)).sum(0),
        products=torch.tensor([float(network.products[name]) for name in measurement.layers]) / len(batch.prompts),
    )


class _Network:
    """The denoiser, run as it is, observed, or with quantized inputs; every call is counted and reported.

    ``products`` of a call by layer, for all rows; ``all_qparams`` by layer, of each observed call.
    """

    def __init__(self, measurement: Measurement, session: Session) -> None:
        self.measurement, self.denoiser, self._session = measurement, measurement.denoiser, session
        self._advance: Advance = lambda: None
        self.products: dict[str, int] = {}
        self.qparams: list[dict[str, QParams]] = []
        self._observers: list[InputObserver] = []

    @contextmanager
    def reporting(self, advance: Advance) -> Iterator[None]:
        """While entered, ``advance`` is called after every call."""
        self._advance = advance
        yield
        self._advance = lambda: None

    def count(self) -> None:
        self._session.count_call()
        self._advance()

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
        self.qparams.append({name: qparams for name, (qparams,) in own.items()})
        return output

    def quantized(self, index: int, call: DenoiserCall) -> Any:
        with quantized_inputs(self.denoiser, self.measurement.layers, self.qparams[index].get):
            return self.plain(index, call)

    def choices(self, index: int) -> dict[str, list[QParams]]:
        """Of every layer, the grids of ACTIVATION_CHOICES at an observed call."""
        return self._found(self._observers[index], ACTIVATION_CHOICES)

    def _found(self, observer: InputObserver, bits: Sequence[int]) -> dict[str, list[QParams]]:
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


def _importance(
    propagation: Propagation, network: _Network, run: CleanRun, progress: Progress, journal: Journal
) -> Tensor:
    """(denoiser calls, prompts): what one unit of squared output error in a call does to the picture."""
    calls = len(run.calls)
    found = _kept({segment: _segment_piece(segment) for segment in segments(calls)}, journal)
    missing = [segment for segment in segments(calls) if segment not in found]
    with progress(DISTURBED_STEPS, _disturbed_calls(calls, missing)) as advance, network.reporting(advance):
        for segment in missing:
            found[segment] = _disturbed(propagation, network, run, segment)
            journal.write(_segment_piece(segment), found[segment])
    importance, all_effects = [], torch.zeros(len(run.batch.prompts))
    for segment in segments(calls):
        errors, effect = found[segment]["errors"], found[segment]["effect"]
        importance.append((effect / errors.sum(0).clamp_min(LEAST)).expand_as(errors))
        all_effects += effect
    return torch.cat(importance) / all_effects.clamp_min(LEAST)


def _kept(pieces: Mapping[Key, str], journal: Journal) -> dict[Key, dict[str, Tensor]]:
    """The pieces that the journal holds."""
    read = {key: journal.read(piece) for key, piece in pieces.items()}
    return {key: tensors for key, tensors in read.items() if tensors is not None}


def _segment_piece(segment: range) -> str:
    return f"sensitivity-segment-{segment.start:04d}"


def _disturbed(propagation: Propagation, network: _Network, run: CleanRun, segment: range) -> dict[str, Tensor]:
    """``errors`` of the outputs, (calls of the segment, prompts), and their ``effect`` on the latents, (prompts,)."""
    prompts, guidance = len(run.batch.prompts), network.measurement.plan.guidance_scale
    outputs = [network.quantized(index, run.calls[index]) for index in segment]
    wrong = [output[0] - run.outputs[index][0] for index, output in zip(segment, outputs, strict=True)]

    def answer(index: int, call: DenoiserCall) -> Any:
        return outputs[0] if index == segment.start else network.quantized(index, call)

    errors = torch.stack([_by_prompt(guided(error, prompts, guidance), prompts) for error in wrong])
    return {"errors": errors.cpu(), "effect": propagation.effect(run, segment, answer, network.plain).cpu()}


def _by_prompt(error: Tensor, prompts: int) -> Tensor:
    """(prompts,): squared, over all rows and elements of a prompt."""
    return error.flatten(1).square().sum(1).view(-1, prompts).sum(0)


def _probe_all(
    network: _Network, run: CleanRun, importance: Tensor, progress: Progress, journal: Journal
) -> tuple[Tensor, Tensor]:
    """(probed calls, layers, choices), of inputs and of weights."""
    probed = probed_calls(len(run.calls))
    found = _kept({index: _probe_piece(index) for index in probed}, journal)
    missing = len(probed) - len(found)
    all_qparams = _weight_qparams(network.measurement, progress) if missing else {}
    generator = Generator().manual_seed(0)
    with progress(PROBING, PROBES * missing) as advance, network.reporting(advance):
        for index in probed:
            if index not in found:
                candidates = Candidates(network.choices(index), all_qparams)
                found[index] = _probed(network, run.calls[index], candidates, importance[index], generator)
                journal.write(_probe_piece(index), found[index])
            generator.set_state(found[index][GENERATOR])
    inputs, weights = (torch.stack([found[index][key] for index in probed]) for key in ("inputs", "weights"))
    return inputs, weights


def _probe_piece(index: int) -> str:
    return f"sensitivity-probe-{index:04d}"


def _probed(
    network: _Network, call: DenoiserCall, candidates: Candidates, importance: Tensor, generator: Generator
) -> dict[str, Tensor]:
    """Squared errors of ``inputs`` and ``weights``, (layers, choices), and the state that ``generator`` is left in."""
    measurement, weighted = network.measurement, importance.to(device_of(network.denoiser))
    probes = []
    for _ in range(PROBES):
        probes.append(probe(network.denoiser, call, candidates, weighted, measurement.plan.guidance_scale, generator))
        network.count()
    return {
        "inputs": _mean([one.inputs for one in probes], measurement.layers).cpu(),
        "weights": _mean([one.weights for one in probes], measurement.layers).cpu(),
        GENERATOR: generator.get_state(),
    }


def _weight_qparams(measurement: Measurement, progress: Progress) -> dict[str, list[WeightQParams]]:
    """Of every layer, the grids of WEIGHT_CHOICES."""
    all_qparams = {}
    with progress(WEIGHT_RANGES, len(measurement.layers)) as advance:
        for name in measurement.layers:
            weight = measurement.denoiser.get_submodule(name).get_parameter("weight").detach()
            all_qparams[name] = [weight_qparams(weight, bits, measurement.weight_range) for bits in WEIGHT_CHOICES]
            advance()
    return all_qparams


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
