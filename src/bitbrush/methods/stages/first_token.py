"""The known first token (MixDQ, arXiv 2405.17873): a text's start token is the same in all, so its answer is known."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from bitbrush.methods.recipe import FirstTokens
from bitbrush.methods.stage import Stage, StageCalls
from bitbrush.methods.state import QuantizationState
from bitbrush.network.first_token import FirstToken, start_token_ratio, text_embedding, text_inputs
from bitbrush.rounding.nearest import RoundedLayer
from bitbrush.timeline.trajectory import carried, pending

MEASURED_TEXTS = 2


def measure_start_token(state: QuantizationState) -> QuantizationState:
    """Measures the norm of the texts' start token over the others'; makes no denoiser call.

    The first of several processes measures, since all must quantize the same layers.
    """
    found = state.session.ranks.from_first(lambda: _measured_ratio(state))
    assert found is not None
    return replace(state, start_token_ratio=float(found["ratio"]) if found else None)


def _measured_ratio(state: QuantizationState) -> dict[str, Tensor]:
    """Returns nothing where the texts have no start token in common."""
    batch = state.batches[0][:MEASURED_TEXTS]
    with carried(state.pipe, state.family.component, [batch], state.recipe.plan) as trajectories:
        text = text_embedding(state.denoiser, pending(trajectories)[0])
    ratio = None if text is None else start_token_ratio(text)
    return {} if ratio is None else {"ratio": torch.tensor(ratio, dtype=torch.float64)}


def know_first_token(state: QuantizationState) -> QuantizationState:
    """Gives the layers that read the text full precision's answer to its first token; others lose what they know."""
    layers = state.first_token_layers
    assert state.rounded is not None
    if _known(state.rounded) >= layers:
        return replace(state, rounded={name: _only(layer, name in layers) for name, layer in state.rounded.items()})
    found = state.session.ranks.from_first(lambda: _measured(state))
    assert found is not None
    firsts = {name: FirstToken(found[f"{name}.input"], found[f"{name}.output"]) for name in layers}
    rounded = {name: replace(layer, first=firsts.get(name)) for name, layer in state.rounded.items()}
    return replace(state, rounded=rounded)


def _only(layer: RoundedLayer, knows: bool) -> RoundedLayer:  # noqa: FBT001
    return layer if knows else replace(layer, first=None)


def _known(rounded: Mapping[str, RoundedLayer]) -> set[str]:
    return {name for name, layer in rounded.items() if layer.first is not None}


def _measured(state: QuantizationState) -> dict[str, Tensor]:
    with carried(state.pipe, state.family.component, state.batches[:1], state.recipe.plan) as trajectories:
        inputs = text_inputs(state.denoiser, state.first_token_layers, pending(trajectories)[0])
        state.session.count_call()
    tensors: dict[str, Tensor] = {}
    for name, x in inputs.items():
        first = FirstToken.of(state.denoiser.get_submodule(name), x)
        tensors |= {f"{name}.input": first.input, f"{name}.output": first.output}
    return tensors


def _check(state: QuantizationState) -> None:
    if state.recipe.first_token is FirstTokens.KNOWN and not state.family.text_layers(state.denoiser):
        raise ValueError(
            f"first_token is {state.recipe.first_token}, but a denoiser of the family {state.family.name} has no "
            "layers that read a text with a start token only; leave it at quantized"
        )


KNOW_FIRST_TOKEN = Stage(
    name="first_token",
    summary="Keys and values of a text's start token are full precision's; ranges are those of the other tokens.",
    run=know_first_token,
    wanted=lambda state: bool(state.first_token_layers or _known(state.rounded or {})),
    calls=lambda state, _: StageCalls(state.batches[:1] if state.first_token_layers else (), 1),
    check=_check,
)
MEASURE_START_TOKEN = Stage(
    name="start_token",
    summary="The norm of the texts' start token decides whether its keys and values stay in full precision.",
    run=measure_start_token,
    reads_prompts=True,
    wanted=lambda state: (
        state.recipe.first_token is FirstTokens.AUTO
        and state.start_token_ratio is None
        and bool(state.family.text_layers(state.denoiser))
    ),
)
