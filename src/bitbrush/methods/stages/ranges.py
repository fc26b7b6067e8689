"""Activation ranges from one full-precision pass, or found at run time: the alternatives to progressive calibration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from bitbrush.calibration.observe import OBSERVING, OBSERVING_CALLS, observe
from bitbrush.calibration.one_pass import one_shot_schedules, static_schedules
from bitbrush.calibration.step_sizes import LEARNED_PROMPTS, of_first_prompts
from bitbrush.methods.recipe import StepSizes
from bitbrush.methods.stage import Stage, StageCalls
from bitbrush.methods.state import QuantizationState
from bitbrush.network.layers import HIGH_PRECISION_ACTIVATION_BITS
from bitbrush.numerics.limits import RangeEstimator
from bitbrush.timeline.schedule import DynamicRanges
from bitbrush.timeline.trajectory import DenoiserCall, carried

Counts: TypeAlias = Callable[[QuantizationState, Sequence[float]], Mapping[float, int] | None]
"""Maps the ordered timesteps to the weight of each in the histogram; None counts each once."""


def observe_full_precision(state: QuantizationState) -> QuantizationState:
    """Observes every layer's inputs along the full-precision trajectories of the calibration prompts.

    It records the calls of the first few prompts if step sizes are learned afterwards.
    """
    recorded: list[DenoiserCall] = []
    prompts = learning_prompts(state)

    def record(batch: int, call: DenoiserCall) -> None:
        if batch == 0 and prompts:
            recorded.append(of_first_prompts(call, len(state.own_batches[0].prompts), prompts))

    with carried(state.pipe, state.family.component, state.own_batches, state.recipe.plan) as trajectories:
        observations = observe(state.denoiser, state.calibration, trajectories, state.session, record=record)
    return replace(state, observations=observations, recorded=recorded)


def learning_prompts(state: QuantizationState) -> int:
    """Returns the prompts of a recorded call on which step sizes are learned; 0 if none are learned."""
    if state.recipe.step_sizes is not StepSizes.LEARNED:
        return 0
    return min(LEARNED_PROMPTS, len(state.own_batches[0].prompts))


def find_ranges_by_step(state: QuantizationState) -> QuantizationState:
    """Computes one range per layer and timestep from the observations."""
    return replace(state, activations=one_shot_schedules(state.calibration, state.observations), observations={})


def static_ranges(counts: Counts = lambda _, __: None) -> Stage:
    """Creates the stage that computes one range per layer for all steps; ``counts`` weights the timesteps."""

    def find(state: QuantizationState) -> QuantizationState:
        weights = counts(state, tuple(state.observations))
        schedules = static_schedules(state.calibration, state.observations, weights)
        return replace(state, activations=schedules, observations={})

    return Stage(
        name="static_ranges",
        summary="One range per layer for all steps, from what was observed at any of them.",
        run=find,
        check=_require_no_relaxing,
    )


def find_dynamic_ranges(state: QuantizationState) -> QuantizationState:
    """Sets the bits of ranges that are computed at run time."""
    bits = {
        spec.name: HIGH_PRECISION_ACTIVATION_BITS if spec.high_precision else state.recipe.activations
        for spec in state.calibration.layers
    }
    return replace(state, activations={name: DynamicRanges(layer_bits) for name, layer_bits in bits.items()})


def _require_no_relaxing(state: QuantizationState) -> None:
    if state.recipe.relax:
        raise ValueError(
            f"relax is {state.recipe.relax}, but {state.recipe.method} has one range for all steps; use pcr or one-shot"
        )


def _check_dynamic(state: QuantizationState) -> None:
    recipe = state.recipe
    require_observed_step_sizes(state)
    if recipe.relax:
        raise ValueError(
            f"relax is {recipe.relax}, but {recipe.method} has the same bits at all steps; use pcr or one-shot"
        )
    if recipe.activation_range is not RangeEstimator.MIN_MAX:
        raise ValueError(
            f"activation_range is {recipe.activation_range}, but {recipe.method} takes the extremes of each input; "
            f"leave it at {RangeEstimator.MIN_MAX}, or use one-shot"
        )


def require_observed_step_sizes(state: QuantizationState) -> None:
    """Raises ValueError if the recipe asks for learned step sizes, which the method does not support."""
    if state.recipe.step_sizes is StepSizes.LEARNED:
        raise ValueError(
            f"step_sizes is learned, but {state.recipe.method} has ranges for every step or finds them at run time; "
            "use a method with one range for all steps"
        )


OBSERVE = Stage(
    name="observation",
    summary="Inputs of every layer are observed along full-precision trajectories.",
    run=observe_full_precision,
    calls=lambda state, of_pipeline: StageCalls(state.own_batches, OBSERVING_CALLS * of_pipeline),
    title=OBSERVING,
)
RANGES_BY_STEP = Stage(
    name="ranges_by_step",
    summary="One range per layer and timestep, all from the full-precision pass.",
    run=find_ranges_by_step,
    check=require_observed_step_sizes,
)
DYNAMIC_RANGES = Stage(
    name="dynamic_ranges",
    summary="Ranges of every token, or of every image in a convolution, are found at run time.",
    run=find_dynamic_ranges,
    check=_check_dynamic,
)
