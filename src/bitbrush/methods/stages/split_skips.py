"""Split shortcuts (Q-Diffusion, arXiv 2302.04304): layers that read a skip concatenation become two layers each."""

from bitbrush.methods.recipe import SkipInputs
from bitbrush.methods.stage import Stage
from bitbrush.methods.state import QuantizationState
from bitbrush.network.skip_inputs import with_split_skips


def split_skips(state: QuantizationState) -> QuantizationState:
    """Splits the convolutions that read a skip concatenation; the denoiser computes the same."""
    denoiser = with_split_skips(state.denoiser, state.family, state.recipe.exclude)
    return state if denoiser is state.denoiser else state.with_denoiser(denoiser)


SPLIT_SKIPS = Stage(
    name="split_skips",
    summary="Convolutions that read a skip concatenation become two, with quantization parameters of their own.",
    run=split_skips,
    changes_network=True,
    wanted=lambda state: state.recipe.skip_inputs is SkipInputs.SPLIT,
)
