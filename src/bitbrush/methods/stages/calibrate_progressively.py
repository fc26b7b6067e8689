"""Progressive calibration as a stage; the algorithm is ``calibration/progressive.py``."""

from dataclasses import replace

from bitbrush.calibration import progressive
from bitbrush.methods.stage import Stage, StageCalls
from bitbrush.methods.stages.ranges import require_observed_step_sizes
from bitbrush.methods.state import QuantizationState
from bitbrush.rounding.nearest import with_weights
from bitbrush.timeline.trajectory import carried


def calibrate_progressively(state: QuantizationState) -> QuantizationState:
    """Computes one range per layer and timestep, each from the output of the quantized steps before it."""
    assert state.rounded is not None
    quantized = with_weights(state.denoiser, state.rounded)
    with carried(state.pipe, state.family.component, state.own_batches, state.recipe.plan) as trajectories:
        schedules = progressive.calibrate_progressively(quantized, state.calibration, trajectories, state.session)
    return replace(state, activations=schedules)


CALIBRATE_PROGRESSIVELY = Stage(
    name="progressive_calibration",
    summary="One range per layer and timestep, each observed on what the quantized steps before produced.",
    run=calibrate_progressively,
    calls=lambda state, of_pipeline: StageCalls(state.own_batches, progressive.PROGRESSIVE_CALLS * of_pipeline),
    title=progressive.CALIBRATING,
    check=require_observed_step_sizes,
)
