"""How long a quantization will take, from timing what it does on its own first step."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from bitbrush.artifact.walk import PipelineWalk, sample_bytes
from bitbrush.calibration.ranges import quantized_inputs
from bitbrush.calibration.sensitivity import ACTIVATION_CHOICES, MEASURED_PROMPTS, PROBES, probed_calls
from bitbrush.calibration.step_sizes import EPOCHS
from bitbrush.methods import METHODS
from bitbrush.methods.allocation import SENSITIVITY
from bitbrush.methods.first_tokens import FIRST_TOKEN
from bitbrush.methods.method import Job, PlannedPhase
from bitbrush.methods.stages import RECORDING, ROUNDING
from bitbrush.methods.step_sizes import STEP_SIZES
from bitbrush.network.held import weight_shape
from bitbrush.network.inputs import InputObserver
from bitbrush.network.layers import set_weight
from bitbrush.numerics.affine import AffineGrid
from bitbrush.numerics.weights import WeightRange, weight_grid
from bitbrush.rounding.blocks import reconstruction_blocks
from bitbrush.rounding.compensation import round_with_compensation
from bitbrush.rounding.demand import layer_demand, rounding_passes
from bitbrush.timeline.trajectory import pending, start

PRODUCT = 1024
"""Size of the square matrices whose product is timed."""
SEARCHED = 1 << 18
"""Weights whose range search is timed."""
COLUMNS = 256
"""Of the layer whose compensation is timed: so small that it is its steps that take the time, not its arithmetic."""

REPEATS = 3
PROBE_PASSES = 5
"""Denoiser calls that a probe is worth: forward, backward, and the errors of every choice of bits."""


@dataclass(frozen=True)
class Pace:
    """Seconds of one denoiser call of the first batch, of ``prompts``: ``observed``, and with ``quantized`` inputs.

    ``grids``: of finding all layers' grids. ``operation``, ``weight``, ``column``: of rounding, for each floating
    point operation, each weight whose range is searched, and each column of a layer's weights.
    """

    prompts: int
    observed: float
    grids: float
    quantized: float
    operation: float
    weight: float
    column: float

    @property
    def per_prompt(self) -> float:
        """Of a plain denoiser call; what observing and quantizing add is little."""
        return min(self.observed, self.quantized) / self.prompts


def measure_pace(job: Job) -> Pace:
    """Times two denoiser calls of the first calibration batch, and samples of the arithmetic of rounding."""
    batch, denoiser, names = job.own[0], job.denoiser, [spec.name for spec in job.calibration.layers]
    grids: dict[str, AffineGrid] = {}
    with start(job.pipe, job.family.component, batch, job.recipe.plan) as trajectory:
        (call,) = pending([trajectory])
        observer = InputObserver()
        with observer.watching(denoiser, names):
            observed = _seconds(lambda: call.run(denoiser))
        finding = _seconds(lambda: grids.update(job.calibration.grids(observer, call.timestep, call.planned)))
        with quantized_inputs(denoiser, names, grids.get):
            quantized = _seconds(lambda: call.run(denoiser))
    return Pace(len(batch.prompts), observed, finding, quantized, *_rounding_pace(job.recipe.weight_range))


def phase_seconds(job: Job, walk: PipelineWalk, pace: Pace) -> dict[str, float]:
    """By phase of the job's method."""
    return {phase.name: _phase_seconds(job, walk, pace, phase) for phase in METHODS[job.recipe.method].phases(job)}


def _phase_seconds(job: Job, walk: PipelineWalk, pace: Pace, phase: PlannedPhase) -> float:
    prompts, calls = sum(len(batch.prompts) for batch in phase.batches), len(walk.timesteps)
    if phase.name == ROUNDING:
        return _rounding_seconds(job, walk, pace)
    if phase.name == RECORDING:
        return calls * prompts * pace.per_prompt
    if phase.name == SENSITIVITY:
        return phase.calls(calls) * prompts * pace.per_prompt + _probing_seconds(calls, pace)
    if phase.name == STEP_SIZES:
        return calls * (1 + EPOCHS * PROBE_PASSES) * prompts * pace.per_prompt
    if phase.name == FIRST_TOKEN:
        return phase.calls(calls) * prompts * pace.per_prompt
    quantized = pace.quantized if phase.on_rounded_weights else 0.0
    return calls * (prompts / pace.prompts * (pace.observed + quantized) + pace.grids)


def _probing_seconds(calls: int, pace: Pace) -> float:
    """What sensitivities take beyond denoiser calls: the calls' grids, and the probes' backward passes."""
    backward = PROBES * (PROBE_PASSES - 1) * MEASURED_PROMPTS * pace.per_prompt
    return calls * pace.grids + len(probed_calls(calls)) * (len(ACTIVATION_CHOICES) * pace.grids + backward)


def _rounding_seconds(job: Job, walk: PipelineWalk, pace: Pace) -> float:
    called = walk.footprint.modules
    layers = [spec.name for spec in job.calibration.layers if spec.name in called]
    seconds, samples = 0.0, len(sample_bytes(job, walk))
    for name in layers:
        layer = job.denoiser.get_submodule(name)
        channels, *kernel = weight_shape(layer)
        seconds += channels * math.prod(kernel) * pace.weight
        if samples:
            operations = layer_demand(layer, called[name], samples * called[name].rows).operations
            seconds += operations * pace.operation + math.prod(kernel) * pace.column
    if samples:
        blocks = reconstruction_blocks(job.denoiser, job.family, layers)
        seconds += rounding_passes(blocks, walk.footprint, samples) * pace.per_prompt
    return seconds


@torch.no_grad()
def _rounding_pace(estimator: WeightRange) -> tuple[float, float, float]:
    """Seconds for an operation, a weight and a column."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(PRODUCT, PRODUCT, generator=generator)
    operation = _seconds(lambda: square @ square, times=REPEATS) / (2 * PRODUCT**3)
    weight = square.flatten()[:SEARCHED].view(-1, PRODUCT)
    search = _seconds(lambda: weight_grid(weight, 4, estimator), times=REPEATS) / SEARCHED
    layer, x = nn.utils.skip_init(nn.Linear, COLUMNS, COLUMNS, bias=False), square[:, :COLUMNS]
    set_weight(layer, x[:COLUMNS], None)
    column = (
        _seconds(lambda: round_with_compensation(layer, 4, WeightRange.MIN_MAX, x, x, generator), times=REPEATS)
        / COLUMNS
    )
    return operation, search, column


def _seconds(work: Callable[[], object], *, times: int = 1) -> float:
    """Of the fastest of so many runs: what else the machine does, and what a first call sets up, is not meant."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)
