"""Step sizes of static ranges learned on the denoiser's output (LSQ, arXiv 1902.08153; as Q-Diffusion learns them)."""

from dataclasses import replace

from bitbrush.calibration.step_sizes import EPOCHS, LEARNING_CALLS, LEARNING_TITLE, StepSizeLearner
from bitbrush.methods.recipe import StepSizes
from bitbrush.methods.stage import Stage, StageCalls
from bitbrush.methods.stages.ranges import learning_prompts
from bitbrush.methods.state import QuantizationState
from bitbrush.rounding.nearest import with_weights
from bitbrush.session.progress import PlannedWork
from bitbrush.timeline.schedule import ActivationSchedule


def learn_step_sizes(state: QuantizationState) -> QuantizationState:
    """Refines the observed ranges by gradients of the quantized denoiser's error, except in high-precision layers."""
    assert state.rounded is not None
    layers = [spec.name for spec in state.calibration.layers if not spec.high_precision]
    learner = StepSizeLearner(
        state.denoiser, layers, state.recipe.guidance_scale, learning_prompts(state), state.session
    )
    observed = {
        name: schedule.qparams[0]
        for name, schedule in state.activations.items()
        if isinstance(schedule, ActivationSchedule)
    }
    learned = learner.learned(with_weights(state.denoiser, state.rounded), state.recorded, observed)
    schedules = {name: ActivationSchedule.static(qparams) for name, qparams in learned.items()}
    return replace(state, activations=schedules, recorded=())


def _calls(state: QuantizationState, of_pipeline: int) -> StageCalls:
    return StageCalls((state.own_batches[0][: learning_prompts(state)],), LEARNING_CALLS * of_pipeline)


ITERATION_COST = 3
"""Cost of an iteration, forward and backward, in denoiser calls."""


def _work(state: QuantizationState, of_pipeline: int) -> tuple[PlannedWork, ...]:
    return (PlannedWork(LEARNING_TITLE, EPOCHS * of_pipeline, ITERATION_COST * learning_prompts(state)),)


LEARN_STEP_SIZES = Stage(
    name="step_sizes",
    summary="Static step sizes are learned on by gradients of the denoiser's guided output.",
    run=learn_step_sizes,
    wanted=lambda state: state.recipe.step_sizes is StepSizes.LEARNED,
    calls=_calls,
    work=_work,
)
