"""Sensitivity of the final latents to the quantization of each layer at each step, the basis of bit allocation.

PCR (arXiv 2311.06322, section 3.3) disturbs single steps and relaxes one end of the steps by hand. Here the measurement
separates each layer's input at each step, and each layer's weight, in three parts. (1) A clean run. (2) The effect of
quantizing a segment of steps on the final latents, by running the rest of the pipeline. (3) The contribution of each
layer to these steps' output errors, by :mod:`bitbrush.calibration.probe`, at some steps. Errors of different layers and
segments are assumed independent, so that their squares add up. Within a segment they are dependent: neighboring steps
have similar errors, which disturbing single steps does not show (``benchmarks/sensitivity.py steps`` disturbs fifths).

All images have equal weight: each image's errors are divided by the effect of all segments on it. Otherwise the few
images that turn into a different image dominate the sum and the bit allocation.
"""

import bisect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn

from bitbrush.calibration.observe import quantized_inputs, run_observed
from bitbrush.calibration.probe import Candidates, guided, probe
from bitbrush.calibration.propagation import CleanRun, Propagation
from bitbrush.network.inputs import InputObserver
from bitbrush.network.lazy_weights import device_of
from bitbrush.network.products import counting_products
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.limits import RangeEstimator, WeightRange
from bitbrush.numerics.ranges import find_qparams
from bitbrush.numerics.weights import WeightQParams, weight_qparams
from bitbrush.session.journal import Journal
from bitbrush.session.progress import Advance, PlannedWork, Progress
from bitbrush.session.session import Session
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import DenoiserCall, PromptBatch, join, planned_timesteps, prediction

Key = TypeVar("Key")

ACTIVATION_CHOICES = (4, 6, 8, 10, 16)
WEIGHT_CHOICES = (2, 3, 4, 5, 6, 7, 8)
BOUNDS = (0.0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8, 15 / 16, 31 / 32, 1.0)
"""Segment bounds as fractions of the denoiser calls; segments are short at the ends, where errors change most."""
MEASURED_PROMPTS = 8
PROBES = 2
LEAST = 1e-30
"""Replacement for a zero error before taking its logarithm."""
CLEAN_RUN, DISTURBED_STEPS = "undisturbed steps", "disturbed steps"
WEIGHT_RANGES, PROBING = "weight ranges", "probing layers"
"""Titles of progress reports."""
OBSERVED_COST, WEIGHT_RANGES_COST, PROBE_COST = 1.7, 2.0, 6.0
"""Cost of an observed call, a layer's weight ranges and a probe in denoiser calls, measured on emoji-sd."""
GENERATOR = "generator"


@dataclass(frozen=True)
class Sensitivities:
    """Squared errors of the final latents, each image's divided by the effect of quantizing all steps.

    Args:
        timesteps: Timesteps of the denoiser calls.
        layers: Layer names.
        inputs: Errors by input bits, (denoiser calls, layers, ACTIVATION_CHOICES).
        weights: Errors by weight bits, (layers, WEIGHT_CHOICES).
        products: Multiplications of one prompt's denoiser call, (layers,).
    """

    timesteps: tuple[float, ...]
    layers: tuple[str, ...]
    inputs: Tensor
    weights: Tensor
    products: Tensor


@dataclass(frozen=True)
class Measurement:
    """Settings of a sensitivity measurement.

    Args:
        pipe: Full-precision pipeline.
        component: Name of the denoiser in the pipeline.
        plan: Sampling plan.
        layers: Layers whose sensitivities are measured.
        bits: Activation bits with which a segment is quantized.
        activation_range: Range estimator of activations.
        weight_range: Range estimator of weights.
    """

    pipe: Any
    component: str
    plan: SamplingPlan
    layers: tuple[str, ...]
    bits: int
    activation_range: RangeEstimator
    weight_range: WeightRange

    @property
    def denoiser(self) -> nn.Module:
        """Denoiser of the pipeline."""
        denoiser: nn.Module = getattr(self.pipe, self.component)
        return denoiser


def measured_batch(batches: Sequence[PromptBatch]) -> PromptBatch:
    """Returns the first 8 prompts, or all of the first batch if it has fewer."""
    return join(batches)[: min(MEASURED_PROMPTS, len(batches[0].prompts))]


def segments(calls: int) -> tuple[range, ...]:
    """Divides the denoiser calls of a pipeline into up to ten contiguous segments."""
    ends = sorted({round(bound * calls) for bound in BOUNDS})
    return tuple(range(begin, end) for begin, end in itertools.pairwise(ends))


def probed_calls(calls: int) -> tuple[int, ...]:
    """Returns the calls at which layers are probed: the middle of each segment, the first call and the last call."""
    middles = {(segment.start + segment.stop - 1) // 2 for segment in segments(calls)}
    return tuple(sorted({0, calls - 1} | middles))


def sensitivity_calls(calls: int) -> int:
    """Counts the denoiser calls of :func:`measure_sensitivities` with probes; the pipeline makes ``calls`` calls."""
    return calls + _disturbed_calls(calls, segments(calls)) + PROBES * len(probed_calls(calls))


def _disturbed_calls(calls: int, measured: Iterable[range]) -> int:
    """Counts calls with quantized inputs and the calls after them; a segment's first disturbed output is used twice."""
    return sum(len(segment) + calls - segment.start - 1 for segment in measured)


def sensitivity_works(calls: int, prompts: int, layers: int) -> tuple[PlannedWork, ...]:
    """Lists the work items of :func:`measure_sensitivities` for a pipeline with ``calls`` denoiser calls."""
    return (
        PlannedWork(CLEAN_RUN, calls, OBSERVED_COST * prompts),
        PlannedWork(DISTURBED_STEPS, _disturbed_calls(calls, segments(calls)), prompts),
        PlannedWork(WEIGHT_RANGES, layers, WEIGHT_RANGES_COST),
        PlannedWork(PROBING, PROBES * len(probed_calls(calls)), PROBE_COST * prompts),
    )


@torch.no_grad()
def measure_sensitivities(measurement: Measurement, batch: PromptBatch, session: Session) -> Sensitivities:
    """Measures the sensitivities of the unchanged denoiser on the trajectories of ``batch``.

    The journal stores each segment and each probed call. Stored results are reused, missing ones are computed and
    stored, and the final result is the same. The clean run is always repeated, because all of them start from it.

    Args:
        measurement: Settings of the measurement.
        batch: Prompts to measure.
        session: Journal, progress and costs.

    Returns:
        Sensitivities of inputs and weights.
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
    """Denoiser that runs unchanged, observed, or with quantized inputs; counts and reports every call.

    Attributes:
        products: Multiplications of a call by layer, for all rows.
        qparams: Quantization parameters by layer, for each observed call.
    """

    def __init__(self, measurement: Measurement, session: Session) -> None:
        self.measurement, self.denoiser, self._session = measurement, measurement.denoiser, session
        self._advance: Advance = lambda: None
        self.products: dict[str, int] = {}
        self.qparams: list[dict[str, QParams]] = []
        self._observers: list[InputObserver] = []

    @contextmanager
    def reporting(self, advance: Advance) -> Iterator[None]:
        """Calls ``advance`` after every denoiser call while entered."""
        self._advance = advance
        yield
        self._advance = lambda: None

    def count(self) -> None:
        """Counts and reports one denoiser call."""
        self._session.count_call()
        self._advance()

    def plain(self, _: int, call: DenoiserCall) -> Any:
        """Runs a call with the unchanged denoiser."""
        output = run_observed(call, self.denoiser)
        self.count()
        return output

    def observed(self, index: int, call: DenoiserCall) -> Any:
        """Runs a call and records the layers' inputs, qparams and multiplications."""
        layers, observer = self.measurement.layers, InputObserver()
        self.products = dict.fromkeys(layers, 0)
        with observer.watching(self.denoiser, layers), counting_products(self.denoiser, self.products):
            output = self.plain(index, call)
        self._observers.append(observer)
        all_qparams = self._layer_qparams(observer, (self.measurement.bits,))
        self.qparams.append({name: qparams for name, (qparams,) in all_qparams.items()})
        return output

    def quantized(self, index: int, call: DenoiserCall) -> Any:
        """Runs a call with the layers' inputs quantized."""
        with quantized_inputs(self.denoiser, self.measurement.layers, self.qparams[index].get):
            return self.plain(index, call)

    def choices(self, index: int) -> dict[str, list[QParams]]:
        """Returns every layer's qparams at an observed call, one for each of ACTIVATION_CHOICES."""
        return self._layer_qparams(self._observers[index], ACTIVATION_CHOICES)

    def _layer_qparams(self, observer: InputObserver, bits: Sequence[int]) -> dict[str, list[QParams]]:
        layers = self.measurement.layers
        histograms = [observer.histogram(name) for name in layers for _ in bits]
        qparams = iter(find_qparams(self.measurement.activation_range, histograms, list(bits) * len(layers)))
        return {name: [next(qparams) for _ in bits] for name in layers}


def _importance(
    propagation: Propagation, network: _Network, run: CleanRun, progress: Progress, journal: Journal
) -> Tensor:
    """Estimates the effect of a unit of squared output error in a call on the image, (denoiser calls, prompts)."""
    calls = len(run.calls)
    results = _journal_results({segment: _segment_piece(segment) for segment in segments(calls)}, journal)
    missing = [segment for segment in segments(calls) if segment not in results]
    with progress(DISTURBED_STEPS, _disturbed_calls(calls, missing)) as advance, network.reporting(advance):
        for segment in missing:
            results[segment] = _disturbed(propagation, network, run, segment)
            journal.write(_segment_piece(segment), results[segment])
    importance, all_effects = [], torch.zeros(len(run.batch.prompts))
    for segment in segments(calls):
        errors, effect = results[segment]["errors"], results[segment]["effect"]
        importance.append((effect / errors.sum(0).clamp_min(LEAST)).expand_as(errors))
        all_effects += effect
    return torch.cat(importance) / all_effects.clamp_min(LEAST)


def _journal_results(pieces: Mapping[Key, str], journal: Journal) -> dict[Key, dict[str, Tensor]]:
    """Reads the results that the journal holds."""
    read = {key: journal.read(piece) for key, piece in pieces.items()}
    return {key: tensors for key, tensors in read.items() if tensors is not None}


def _segment_piece(segment: range) -> str:
    return f"sensitivity-segment-{segment.start:04d}"


def _disturbed(propagation: Propagation, network: _Network, run: CleanRun, segment: range) -> dict[str, Tensor]:
    """Measures output ``errors``, (calls of the segment, prompts), and their ``effect`` on the latents, (prompts,)."""
    prompts, guidance = len(run.batch.prompts), network.measurement.plan.guidance_scale
    outputs = [network.quantized(index, run.calls[index]) for index in segment]
    wrong = [
        prediction(output) - prediction(run.outputs[index]) for index, output in zip(segment, outputs, strict=True)
    ]

    def answer(index: int, call: DenoiserCall) -> Any:
        return outputs[0] if index == segment.start else network.quantized(index, call)

    errors = torch.stack([_by_prompt(guided(error, prompts, guidance), prompts) for error in wrong])
    return {"errors": errors.cpu(), "effect": propagation.effect(run, segment, answer, network.plain).cpu()}


def _by_prompt(error: Tensor, prompts: int) -> Tensor:
    """Sums squared errors over all rows and elements of a prompt, (prompts,)."""
    return error.flatten(1).square().sum(1).view(-1, prompts).sum(0)


def _probe_all(
    network: _Network, run: CleanRun, importance: Tensor, progress: Progress, journal: Journal
) -> tuple[Tensor, Tensor]:
    """Probes inputs and weights, each (probed calls, layers, choices)."""
    probed = probed_calls(len(run.calls))
    results = _journal_results({index: _probe_piece(index) for index in probed}, journal)
    missing = len(probed) - len(results)
    all_qparams = _weight_qparams(network.measurement, progress) if missing else {}
    generator = Generator().manual_seed(0)
    with progress(PROBING, PROBES * missing) as advance, network.reporting(advance):
        for index in probed:
            if index not in results:
                candidates = Candidates(network.choices(index), all_qparams)
                results[index] = _probed(network, run.calls[index], candidates, importance[index], generator)
                journal.write(_probe_piece(index), results[index])
            generator.set_state(results[index][GENERATOR])
    inputs, weights = (torch.stack([results[index][key] for index in probed]) for key in ("inputs", "weights"))
    return inputs, weights


def _probe_piece(index: int) -> str:
    return f"sensitivity-probe-{index:04d}"


def _probed(
    network: _Network, call: DenoiserCall, candidates: Candidates, importance: Tensor, generator: Generator
) -> dict[str, Tensor]:
    """Estimates squared errors of ``inputs`` and ``weights``, (layers, choices), and returns the generator's state."""
    measurement, weighted = network.measurement, importance.to(device_of(network.denoiser))
    probes = []
    for _ in range(PROBES):
        probes.append(probe(network.denoiser, call, candidates, weighted, measurement.plan.guidance_scale, generator))
        network.count()
    return {
        "inputs": _mean([errors.inputs for errors in probes], measurement.layers).cpu(),
        "weights": _mean([errors.weights for errors in probes], measurement.layers).cpu(),
        GENERATOR: generator.get_state(),
    }


def _weight_qparams(measurement: Measurement, progress: Progress) -> dict[str, list[WeightQParams]]:
    """Returns every layer's weight qparams, one for each of WEIGHT_CHOICES."""
    all_qparams = {}
    with progress(WEIGHT_RANGES, len(measurement.layers)) as advance:
        for name in measurement.layers:
            weight = measurement.denoiser.get_submodule(name).get_parameter("weight").detach()
            all_qparams[name] = [weight_qparams(weight, bits, measurement.weight_range) for bits in WEIGHT_CHOICES]
            advance()
    return all_qparams


def _mean(probes: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> Tensor:
    """Averages probes, (layers, choices)."""
    return torch.stack([torch.stack([errors[name] for errors in probes]).mean(0) for name in names])


def _between(measured: Tensor, at: Sequence[int], calls: int) -> Tensor:
    """Interpolates (measured calls, ...) to (all calls, ...), linearly in the logarithm."""
    logarithm = measured.clamp_min(LEAST).log()
    rows = []
    for call in range(calls):
        after = min(bisect.bisect_left(at, call), len(at) - 1)
        before = max(after - 1, 0)
        share = (call - at[before]) / (at[after] - at[before]) if after > before else 0.0
        rows.append(torch.lerp(logarithm[before], logarithm[after], share).exp())
    return torch.stack(rows)
