"""Equivalent scaling (SmoothQuant, arXiv 2211.10438): part of the inputs' scale moves into the weights.

It smooths inputs of transformer blocks that a norm or a linear layer computes. A convolution after a SiLU stays as it
is, because nothing before it can absorb the scale.
"""

from bitbrush.calibration.channels import CHANNEL_CALLS, CHANNELS_TITLE, observe_channels
from bitbrush.methods.recipe import Smoothing
from bitbrush.methods.stage import Stage, StageCalls
from bitbrush.methods.state import QuantizationState
from bitbrush.network.lazy_weights import shallow_copy
from bitbrush.network.smoothing import channel_scale, reader_weight, smooth_, smoothable_inputs
from bitbrush.timeline.trajectory import carried

ALPHA = 0.5
"""SmoothQuant's exponent."""


def smooth(state: QuantizationState) -> QuantizationState:
    """Smooths the denoiser's inputs; it computes the same.

    Raises:
        ValueError: The denoiser has no inputs to smooth.
    """
    inputs = smoothable_inputs(state.denoiser, state.family)
    if not inputs:
        raise ValueError(
            f"smoothing is {state.recipe.smoothing}, but nothing in this {type(state.denoiser).__name__} can absorb "
            "the scale of an input: the transformer blocks of U-Nets can; choose none"
        )
    names = [shared_input.readers[0] for shared_input in inputs]
    with carried(state.pipe, state.family.component, state.own_batches, state.recipe.plan) as trajectories:
        extremes = observe_channels(state.denoiser, names, trajectories, state.session)
    weights = {shared_input.readers[0]: reader_weight(state.denoiser, shared_input) for shared_input in inputs}
    denoiser = shallow_copy(state.denoiser)
    smooth_(denoiser, inputs, {name: channel_scale(weights[name], extremes[name], ALPHA) for name in names})
    return state.with_denoiser(denoiser)


SMOOTH = Stage(
    name="smoothing",
    summary="Part of the inputs' scale, channel by channel, moves into the weights of transformer blocks.",
    run=smooth,
    title=CHANNELS_TITLE,
    changes_network=True,
    wanted=lambda state: state.recipe.smoothing is not Smoothing.NONE,
    calls=lambda state, of_pipeline: StageCalls(state.own_batches, CHANNEL_CALLS * of_pipeline),
)
