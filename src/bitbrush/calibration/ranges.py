"""Activation grids of all layers over the steps of a plan, observed one-shot or progressively.

Progressive calibration is PCR section 3.2 (arXiv 2311.06322). Deviations: latents are carried from step to step, so it
costs two denoiser calls per step instead of restarting the pipeline for each; every step is recalibrated, the last
included; ranges are those of the whole calibration set, no moving average; what is observed at a step is not distorted
by older parameters of that step.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, TypeAlias

from torch import nn

from bitbrush.calibration.kept_steps import step_from_tensors, step_tensors
from bitbrush.calibration.merging import merged_over_ranks
from bitbrush.network.inputs import InputObserver, fake_quantize_input
from bitbrush.network.layers import EDGE_ACTIVATION_BITS, LayerSpec
from bitbrush.numerics.affine import AffineGrid
from bitbrush.numerics.histogram import Histogram, NonFiniteError
from bitbrush.numerics.ranges import RangeEstimator
from bitbrush.timeline.allocator import trim
from bitbrush.timeline.cost import CallCounter
from bitbrush.timeline.journal import NO_JOURNAL, Journal
from bitbrush.timeline.plan import Relaxation, bits_at
from bitbrush.timeline.progress import Progress
from bitbrush.timeline.ranks import ALONE, Ranks
from bitbrush.timeline.schedule import ActivationSchedule
from bitbrush.timeline.trajectory import DenoiserCall, Trajectory, pending

OBSERVING_CALLS, PROGRESSIVE_CALLS = 1, 2
"""Denoiser calls of :func:`observe` and :func:`calibrate_progressively` for each that the pipeline makes."""

OBSERVING, CALIBRATING = "observing", "calibrating"
"""Titles under which these two report progress."""

Observations: TypeAlias = dict[float, InputObserver]
"""What every layer was given, by timestep."""


Recording: TypeAlias = Callable[[int, DenoiserCall], None]
"""Is handed every denoiser call, and the index of its batch."""


def no_recording(_: int, __: DenoiserCall) -> None:
    """Nothing is kept of the calls."""


@dataclass(frozen=True)
class ActivationBits:
    """``normal`` bits, more in the steps of ``relaxation``; the denoiser's edge layers always have 16.

    ``allocated``: by layer name and timestep instead, where bits were measured.
    """

    normal: int
    relaxation: Relaxation | None = None
    allocated: Mapping[str, Mapping[float, int]] | None = None

    def of(self, spec: LayerSpec, timesteps: Sequence[float]) -> dict[float, int]:
        """Bits of a layer's input at every distinct timestep."""
        if spec.edge:
            return dict.fromkeys(timesteps, EDGE_ACTIVATION_BITS)
        if self.allocated is not None:
            return dict(self.allocated[spec.name])
        return bits_at(self.normal, self.relaxation, timesteps)


@dataclass(frozen=True)
class Calibration:
    """What ranges are found for, and how. ``but_first``: layers in whose ranges the first token does not count."""

    specs: tuple[LayerSpec, ...]
    bits: ActivationBits
    estimator: RangeEstimator
    but_first: frozenset[str] = frozenset()

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        return tuple(spec for spec in self.specs if spec.excluded is None)

    def grids(self, observer: InputObserver, timestep: float, planned: Sequence[float]) -> dict[str, AffineGrid]:
        """The grid of every layer for one timestep."""
        names = [spec.name for spec in self.layers]
        # A pipeline in half precision calls with timesteps that are the planned ones rounded.
        step = min(planned, key=lambda known: abs(known - timestep))
        bits = [self.bits.of(spec, planned)[step] for spec in self.layers]
        return dict(zip(names, self.estimator.grids([observer.histogram(name) for name in names], bits), strict=True))


def observe(
    denoiser: nn.Module,
    calibration: Calibration,
    trajectories: Sequence[Trajectory],
    progress: Progress,
    calls: CallCounter,
    *,
    ranks: Ranks = ALONE,
    record: Recording = no_recording,
) -> Observations:
    """Runs the trajectories to their end with ``denoiser`` as it is and observes the input of every layer.

    One call per step and prompt batch. ``trajectories`` may be the share of one process of ``ranks``; each is given
    what all observed. ``record`` is handed every call together with the index of its batch.
    """
    observations: Observations = {}
    names = [spec.name for spec in calibration.layers]
    with progress(OBSERVING, len(pending(trajectories)[0].planned)) as advance:
        while waiting := pending(trajectories):
            observer = observations.setdefault(waiting[0].timestep, InputObserver())
            with observer.watching(denoiser, names, calibration.but_first):
                for batch, (trajectory, call) in enumerate(zip(trajectories, waiting, strict=True)):
                    record(batch, call)
                    trajectory.answer(run_observed(call, denoiser))
            calls.add()
            advance()
            trim()
    return {timestep: merged_over_ranks(observer, names, ranks) for timestep, observer in observations.items()}


def static_schedules(
    calibration: Calibration, observations: Observations, counts: Mapping[float, int] | None = None
) -> dict[str, ActivationSchedule]:
    """One range per layer for all steps: the union of what was seen at any of them.

    ``counts``: how many times each timestep counts, none where it is not in it; None: all once.
    """
    everything = InputObserver()
    counts = counts if counts is not None else dict.fromkeys(observations, 1)
    for spec in calibration.layers:
        histograms = [observations[t].histogram(spec.name).times(count) for t, count in counts.items()]
        everything.histograms[spec.name] = reduce(Histogram.merge, histograms)
    any_step = next(iter(observations))
    grids = calibration.grids(everything, any_step, (any_step,))
    return {name: ActivationSchedule.static(grid) for name, grid in grids.items()}


def one_shot_schedules(calibration: Calibration, observations: Observations) -> dict[str, ActivationSchedule]:
    """One range per layer and timestep, from a single pass."""
    planned = tuple(observations)
    by_step = {t: calibration.grids(observer, t, planned) for t, observer in observations.items()}
    return _by_layer(by_step)


def calibrate_progressively(
    denoiser: nn.Module,
    calibration: Calibration,
    trajectories: Sequence[Trajectory],
    progress: Progress,
    calls: CallCounter,
    journal: Journal = NO_JOURNAL,
    ranks: Ranks = ALONE,
) -> dict[str, ActivationSchedule]:
    """One range per layer and timestep, each observed on what the already quantized steps produced.

    At every step all batches are run once in full-precision activations to observe, then once with the new grids, and
    that output is what the trajectories go on with: two calls per step and prompt batch. A timestep that the scheduler
    visits twice (PNDM, Heun) has one grid, from what both visits saw. ``denoiser`` holds the quantized weights already.
    A visit that ``journal`` holds is not observed again, the others go into it; the result is the same.
    ``trajectories`` may be the share of one process of ``ranks``: their histograms are merged at every visit.
    """
    observations: Observations = {}
    by_step: dict[float, dict[str, AffineGrid]] = {}
    planned = pending(trajectories)[0].planned
    current: dict[str, AffineGrid] = {}
    names = [spec.name for spec in calibration.layers]
    with quantized_inputs(denoiser, names, current.get), progress(CALIBRATING, len(planned)) as advance:
        for visit in itertools.count():
            if not (waiting := pending(trajectories)):
                break
            timestep, piece = waiting[0].timestep, f"visit-{visit:04d}"
            current.clear()
            if (kept := journal.read(piece)) is not None:
                observations[timestep], by_step[timestep] = step_from_tensors(names, kept)
            else:
                visit_only, observer = InputObserver(), observations.setdefault(timestep, InputObserver())
                with visit_only.watching(denoiser, names, calibration.but_first):
                    for call in waiting:
                        run_observed(call, denoiser)
                calls.add()
                observer.add(merged_over_ranks(visit_only, names, ranks))
                by_step[timestep] = calibration.grids(observer, timestep, planned)
                journal.write(piece, step_tensors(names, observer, by_step[timestep]))
            current.update(by_step[timestep])
            for trajectory, call in zip(trajectories, waiting, strict=True):
                trajectory.answer(call.run(denoiser))
            calls.add()
            advance()
            trim()
    return _by_layer(by_step)


def run_observed(call: DenoiserCall, denoiser: nn.Module) -> Any:
    """Runs an observed call; names the step in the error if a layer is given NaN."""
    try:
        return call.run(denoiser)
    except NonFiniteError as error:
        raise NonFiniteError(
            f"{error} at step {call.step} (timestep {call.timestep:g}) during calibration; "
            "run the pipeline in float32, or exclude the layers before it"
        ) from None


@contextmanager
def quantized_inputs(
    denoiser: nn.Module, names: Sequence[str], grid: Callable[[str], AffineGrid | None]
) -> Iterator[None]:
    """While entered, the layers see their inputs on ``grid(name)``; unchanged where that is None."""
    handles = [fake_quantize_input(denoiser.get_submodule(name), partial(grid, name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _by_layer(by_step: Mapping[float, Mapping[str, AffineGrid]]) -> dict[str, ActivationSchedule]:
    names = next(iter(by_step.values()))
    return {name: ActivationSchedule.of({t: grids[name] for t, grids in by_step.items()}) for name in names}
