"""The stages that several methods share."""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from bitbrush.calibration.ranges import (
    OBSERVING,
    OBSERVING_CALLS,
    Observations,
    Recording,
    no_recording,
    observe,
    static_schedules,
)
from bitbrush.methods.allocation import sensitivity_phases, with_measured_bits
from bitbrush.methods.first_tokens import first_token_phases, with_first_tokens
from bitbrush.methods.method import Job, Outcome, PlannedPhase
from bitbrush.methods.recipe import Rounding
from bitbrush.methods.smoothing import smoothing_phases
from bitbrush.methods.step_sizes import RecordedCalls, static_learning_phases
from bitbrush.network.first_token import answer_first_token
from bitbrush.network.held import device_of, hold_rounded, twin
from bitbrush.network.layers import LayerSpec, QuantizedLayer
from bitbrush.rounding.learned import COMPENSATED, PUBLISHED, Procedure, learn_rounding, learning_work
from bitbrush.rounding.nearest import RoundedLayer, round_all_to_nearest
from bitbrush.rounding.samples import (
    RECORDING_CALLS,
    RECORDING_TITLE,
    record_samples,
    recorded_samples,
    sample_pieces,
    sample_shards,
)
from bitbrush.timeline.progress import PlannedWork
from bitbrush.timeline.schedule import Activations
from bitbrush.timeline.trajectory import carried, planned_timesteps

RECORDING, ROUNDING, OBSERVATION = "recording", "rounding", "observation"


def early_phases(job: Job) -> tuple[PlannedPhase, ...]:
    """What is done with the denoiser before its weights are rounded, by the recipe's keys."""
    return (*smoothing_phases(job), *sensitivity_phases(job))


def rounding_phases(job: Job) -> tuple[PlannedPhase, ...]:
    """What :func:`rounded_weights` will do. Learning itself makes no whole denoiser calls: it goes block by block."""
    known = first_token_phases(job)
    if job.rounded is not None:
        return known
    match job.recipe.rounding:
        case Rounding.NEAREST:
            return (PlannedPhase(ROUNDING), *known)
        case Rounding.LEARNED:
            return (*_learning_phases(job, COMPENSATED), *known)
        case Rounding.ADAROUND:
            return (*_learning_phases(job, PUBLISHED), *known)


def _learning_phases(job: Job, procedure: Procedure) -> tuple[PlannedPhase, ...]:
    pieces, layers = sample_pieces(job.batches, job.ranks), [spec.name for spec in _to_round(job)]

    def works(calls: int) -> tuple[PlannedWork, ...]:
        return (learning_work(job.denoiser, job.family, layers, recorded_samples(pieces, calls), procedure),)

    recorded = [piece.batch for piece in pieces]
    return (
        PlannedPhase(RECORDING, recorded, RECORDING_CALLS, title=RECORDING_TITLE),
        PlannedPhase(ROUNDING, works_of=works),
    )


def observing_phases(job: Job) -> tuple[PlannedPhase, ...]:
    """Of a method that rounds the weights and observes full precision."""
    observing = PlannedPhase(OBSERVATION, job.own, OBSERVING_CALLS, title=OBSERVING)
    return (*early_phases(job), *rounding_phases(job), observing)


def require_one_range(job: Job) -> None:
    """Raises ValueError if the recipe relaxes steps, which a method with one range for all steps cannot."""
    if job.recipe.relax:
        raise ValueError(
            f"relax is {job.recipe.relax}, but {job.recipe.method} has one range for all steps; use pcr or one-shot"
        )


def with_one_range(job: Job, counts: Callable[[Sequence[float]], Mapping[float, int]] | None = None) -> Outcome:
    """Rounds the weights, and finds one range per layer for all steps on one pass of full precision.

    ``counts``: from the timesteps, in order, to how many times each counts; None: all once.
    """
    require_one_range(job)
    job = with_measured_bits(job)
    calls = RecordedCalls(job)
    rounded, observations = rounded_weights(job), observe_full_precision(job, calls.record)
    chosen = None if counts is None else counts(tuple(observations))
    schedules = static_schedules(job.calibration, observations, chosen)
    return outcome(job, rounded, calls.learned(with_weights(job.denoiser, rounded), schedules))


def one_range_phases(job: Job) -> tuple[PlannedPhase, ...]:
    """Of :func:`with_one_range`."""
    require_one_range(job)
    return (*observing_phases(job), *static_learning_phases(job))


def rounded_weights(job: Job) -> Mapping[str, RoundedLayer]:
    """The job's own, or by the recipe's rounding; learned rounding records full-precision trajectories first.

    With what is known of the text's first token, if the recipe says so.
    """
    return with_first_tokens(job, _rounded(job) if job.rounded is None else job.rounded)


def _rounded(job: Job) -> Mapping[str, RoundedLayer]:
    factors = {name: RoundedLayer(weight, None) for name, weight in job.factors.items()}
    match job.recipe.rounding:
        case Rounding.NEAREST:
            with job.costs.phase(ROUNDING):
                return round_all_to_nearest(job.denoiser, _to_round(job), job.recipe.weight_range) | factors
        case Rounding.LEARNED:
            return _learned_rounding(job, COMPENSATED) | factors
        case Rounding.ADAROUND:
            return _learned_rounding(job, PUBLISHED) | factors


def _to_round(job: Job) -> tuple[LayerSpec, ...]:
    return tuple(spec for spec in job.calibration.layers if spec.name not in job.factors)


def _learned_rounding(job: Job, procedure: Procedure) -> dict[str, RoundedLayer]:
    with job.costs.phase(RECORDING) as calls:
        samples = record_samples(
            job.pipe,
            job.family,
            job.batches,
            job.recipe.plan,
            job.progress,
            calls,
            spool=job.spool,
            ranks=job.ranks,
        )
    with job.costs.phase(ROUNDING):
        return learn_rounding(
            job.denoiser,
            job.family,
            _to_round(job),
            job.recipe.weight_range,
            samples,
            job.progress,
            job.journal,
            spool=job.spool,
            shards=sample_shards(job.batches, len(samples), job.ranks),
            procedure=procedure,
        )


def observe_full_precision(job: Job, record: Recording = no_recording) -> Observations:
    """What every layer is given along the full-precision trajectories of the calibration prompts.

    ``record``: as of :func:`~bitbrush.calibration.ranges.observe`.
    """
    with (
        job.costs.phase(OBSERVATION) as calls,
        carried(job.pipe, job.family.component, job.own, job.recipe.plan) as trajectories,
    ):
        return observe(job.denoiser, job.calibration, trajectories, job.progress, calls, ranks=job.ranks, record=record)


def with_weights(denoiser: nn.Module, rounded: Mapping[str, RoundedLayer]) -> nn.Module:
    """One that computes with the rounded weights, held as integers; all else it shares with ``denoiser``."""
    quantized, device = twin(denoiser), device_of(denoiser)
    for name, layer in ((name, layer.to(device)) for name, layer in rounded.items()):
        hold_rounded(quantized.get_submodule(name), layer.weight, layer.bias)
        if layer.first is not None:
            answer_first_token(quantized.get_submodule(name), layer.first)
    return quantized


def outcome(job: Job, rounded: Mapping[str, RoundedLayer], activations: Mapping[str, Activations]) -> Outcome:
    layers = tuple(
        QuantizedLayer(name, layer.weight, layer.bias, activations[name], layer.first)
        for name, layer in rounded.items()
    )
    planned = planned_timesteps(job.pipe, job.family.component, job.recipe.plan, job.batches[0])
    return Outcome(job.specs, layers, planned, job.allocated.average if job.allocated else None)
