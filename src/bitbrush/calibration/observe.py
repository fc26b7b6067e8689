"""Observation of every layer's input at every step of the calibration trajectories."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from torch import nn

from bitbrush.calibration.merging import merged_over_ranks
from bitbrush.calibration.relaxing import Relaxation, bits_at
from bitbrush.network.inputs import InputObserver, fake_quantize_input
from bitbrush.network.layers import HIGH_PRECISION_ACTIVATION_BITS, LayerSpec
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.histogram import NonFiniteError
from bitbrush.numerics.limits import RangeEstimator
from bitbrush.numerics.ranges import find_qparams
from bitbrush.session.allocator import trim
from bitbrush.session.session import Session
from bitbrush.timeline.trajectory import DenoiserCall, Trajectory, lockstep, pending

OBSERVING_CALLS = 1
"""Denoiser calls of :func:`observe` per denoiser call of the pipeline."""
OBSERVING = "observing"
"""Title of progress reports."""

Observations: TypeAlias = dict[float, InputObserver]
"""Histograms of every layer's input by timestep."""

Record: TypeAlias = Callable[[int, DenoiserCall], None]
"""Callback that receives the index of the batch and the denoiser call."""


def record_nothing(_: int, __: DenoiserCall) -> None:
    """Discards the call."""


@dataclass(frozen=True)
class ActivationBits:
    """Activation bits of every layer and timestep.

    Args:
        normal: Bits of steps that are not relaxed.
        relaxation: Steps with more bits.
        allocated: Measured bits by layer name and timestep; they replace ``normal`` and ``relaxation``.
    """

    normal: int
    relaxation: Relaxation | None = None
    allocated: Mapping[str, Mapping[float, int]] | None = None

    def of(self, spec: LayerSpec, timesteps: Sequence[float]) -> dict[float, int]:
        """Returns the bits of a layer's input at every distinct timestep; high-precision layers always have 16."""
        if spec.high_precision:
            return dict.fromkeys(timesteps, HIGH_PRECISION_ACTIVATION_BITS)
        if self.allocated is not None:
            return dict(self.allocated[spec.name])
        return bits_at(self.normal, self.relaxation, timesteps)


@dataclass(frozen=True)
class Calibration:
    """Layers to calibrate and the algorithm that determines their quantization parameters.

    Args:
        specs: Treatment of every layer.
        bits: Activation bits.
        estimator: Range estimator, from a histogram to a range.
        but_first: Layers whose ranges exclude the first token of a prompt.
    """

    specs: tuple[LayerSpec, ...]
    bits: ActivationBits
    estimator: RangeEstimator
    but_first: frozenset[str] = frozenset()

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """Specs of the quantized layers."""
        return tuple(spec for spec in self.specs if spec.excluded is None)

    @property
    def names(self) -> list[str]:
        """Names of the quantized layers."""
        return [spec.name for spec in self.layers]

    def qparams(self, observer: InputObserver, timestep: float, planned: Sequence[float]) -> dict[str, QParams]:
        """Computes every layer's quantization parameters for one timestep.

        Args:
            observer: Histograms of the layers' inputs.
            timestep: Timestep of the call.
            planned: All timesteps of the plan.

        Returns:
            Quantization parameters by layer name.
        """
        # A pipeline in half precision rounds the planned timesteps.
        step = min(planned, key=lambda candidate: abs(candidate - timestep))
        bits = [self.bits.of(spec, planned)[step] for spec in self.layers]
        histograms = [observer.histogram(name) for name in self.names]
        return dict(zip(self.names, find_qparams(self.estimator, histograms, bits), strict=True))


def observe(
    denoiser: nn.Module,
    calibration: Calibration,
    trajectories: Sequence[Trajectory],
    session: Session,
    *,
    record: Record = record_nothing,
) -> Observations:
    """Runs the trajectories to their end and collects histograms of every layer's input.

    The denoiser is unchanged and runs once per step and prompt batch. The trajectories may be the shard of one process;
    every process receives the histograms of all processes.

    Args:
        denoiser: Denoiser to observe.
        calibration: Layers to observe.
        trajectories: Pipeline calls, each suspended at its first denoiser call.
        session: Processes, progress and costs.
        record: Callback that receives every denoiser call before it runs.

    Returns:
        Histograms by timestep.
    """
    observations: Observations = {}
    with session.progress(OBSERVING, len(pending(trajectories)[0].planned)) as advance:
        for calls in lockstep(trajectories):
            observer = observations.setdefault(calls[0].timestep, InputObserver())
            with observer.watching(denoiser, calibration.names, calibration.but_first):
                for batch, (trajectory, call) in enumerate(zip(trajectories, calls, strict=True)):
                    record(batch, call)
                    trajectory.answer(run_observed(call, denoiser))
            session.count_call()
            advance()
            trim()
    names, ranks = calibration.names, session.ranks
    return {timestep: merged_over_ranks(observer, names, ranks) for timestep, observer in observations.items()}


def observe_step(
    denoiser: nn.Module, calibration: Calibration, calls: Sequence[DenoiserCall], session: Session
) -> InputObserver:
    """Collects histograms of every layer's input in one step's calls of all processes, without answering the calls."""
    observer = InputObserver()
    with observer.watching(denoiser, calibration.names, calibration.but_first):
        for call in calls:
            run_observed(call, denoiser)
    session.count_call()
    return merged_over_ranks(observer, calibration.names, session.ranks)


def run_observed(call: DenoiserCall, denoiser: nn.Module) -> Any:
    """Runs an observed call and adds the step to errors about non-finite inputs.

    Raises:
        NonFiniteError: The input of a layer contains NaN or infinity; the message names the step.
    """
    try:
        return call.run(denoiser)
    except NonFiniteError as error:
        raise NonFiniteError(
            f"{error} at step {call.step} (timestep {call.timestep:g}) during calibration; "
            "run the pipeline in float32, or exclude the layers before it"
        ) from None


@contextmanager
def quantized_inputs(
    denoiser: nn.Module, names: Sequence[str], qparams: Callable[[str], QParams | None]
) -> Iterator[None]:
    """Fake-quantizes layer inputs by ``qparams(name)`` while entered; None leaves an input unchanged."""
    handles = [fake_quantize_input(denoiser.get_submodule(name), partial(qparams, name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
