"""Known first token (MixDQ, arXiv 2405.17873): all texts have the same start token, so its output is precomputed."""

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
    """Measures the norm of the texts' start token over that of the other tokens; makes no denoiser call.

    The first of several processes measures, since all must quantize the same layers.
    """
    tensors = state.session.ranks.from_first(lambda: _measured_ratio(state))
    assert tensors is not None
    return replace(state, start_token_ratio=float(tensors["ratio"]) if tensors else None)


def _measured_ratio(state: QuantizationState) -> dict[str, Tensor]:
    """Returns the ratio by name; an empty dictionary if the texts have no start token in common."""
    batch = state.batches[0][:MEASURED_TEXTS]
    with carried(state.pipe, state.family.component, [batch], state.recipe.plan) as trajectories:
        text = text_embedding(state.denoiser, pending(trajectories)[0])
    ratio = None if text is None else start_token_ratio(text)
    return {} if ratio is None else {"ratio": torch.tensor(ratio, dtype=torch.float64)}


def know_first_token(state: QuantizationState) -> QuantizationState:
    """Sets the full-precision output for the first token in layers that read the text; removes it from other layers."""
    layers = state.first_token_layers
    assert state.rounded is not None
    if _layers_with_first(state.rounded) >= layers:
        return replace(state, rounded={name: _only(layer, name in layers) for name, layer in state.rounded.items()})
    tensors = state.session.ranks.from_first(lambda: _measured(state))
    assert tensors is not None
    firsts = {name: FirstToken(tensors[f"{name}.input"], tensors[f"{name}.output"]) for name in layers}
    rounded = {name: replace(layer, first=firsts.get(name)) for name, layer in state.rounded.items()}
    return replace(state, rounded=rounded)


def _only(layer: RoundedLayer, knows: bool) -> RoundedLayer:  # noqa: FBT001
    return layer if knows else replace(layer, first=None)


def _layers_with_first(rounded: Mapping[str, RoundedLayer]) -> set[str]:
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
            "layers that read only a text with a start token; leave it at quantized"
        )


KNOW_FIRST_TOKEN = Stage(
    name="first_token",
    summary="Keys and values of a text's start token are full precision's; ranges are those of the other tokens.",
    run=know_first_token,
    wanted=lambda state: bool(state.first_token_layers or _layers_with_first(state.rounded or {})),
    calls=lambda state, _: StageCalls(state.batches[:1] if state.first_token_layers else (), 1),
    check=_check,
)
MEASURE_START_TOKEN = Stage(
    name="start_token",
    summary="The norm of the texts' start token decides whether its keys and values stay in full precision.",
    run=measure_start_token,
    wanted=lambda state: (
        state.recipe.first_token is FirstTokens.AUTO
        and state.start_token_ratio is None
        and bool(state.family.text_layers(state.denoiser))
    ),
)
