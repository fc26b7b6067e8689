"""Low-rank branches (after SVDQuant, arXiv 2411.05007), which compute the most sensitive part of each layer."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from bitbrush.methods.recipe import Smoothing
from bitbrush.methods.stage import Stage
from bitbrush.methods.state import QuantizationState
from bitbrush.network.lazy_weights import device_of, shallow_copy
from bitbrush.network.low_rank import (
    Factors,
    branch_,
    factor_bits,
    factors,
    rank_of,
    set_factors,
    weight_reader,
)
from bitbrush.numerics.weights import QuantizedWeight, WeightQParams

PARTS = ("up", "down")


def add_branches(state: QuantizationState) -> QuantizationState:
    """Adds a branch to every layer; the denoiser computes the same.

    High-precision and excluded layers, and those with a known first token, stay as they are.

    Raises:
        ValueError: No layer that is quantized is large enough for a branch.
    """
    ranks = _ranks(state)
    if not ranks:
        raise ValueError(
            f"low_rank is {state.recipe.low_rank}, but no layer that is quantized is large enough for a branch; leave "
            "it at none"
        )
    denoiser = shallow_copy(state.denoiser)
    whole = {name: weight_reader(denoiser.get_submodule(name)) for name in ranks}
    branch_(denoiser, ranks)
    all_factors = _factors(state, whole, ranks)
    device = device_of(state.denoiser)
    for name, pair in all_factors.items():
        set_factors(denoiser.get_submodule(name), whole[name], pair.to(device))
    integers = {f"{name}.{part}": getattr(pair, part) for name, pair in all_factors.items() for part in PARTS}
    return replace(state.with_denoiser(denoiser), factors=integers)


def _ranks(state: QuantizationState) -> dict[str, int]:
    rank, text_layers = state.recipe.low_rank, state.first_token_layers
    assert rank is not None
    free = (spec.name for spec in state.calibration.layers if not spec.high_precision and spec.name not in text_layers)
    ranks = {name: rank_of(state.denoiser.get_submodule(name), rank) for name in free}
    return {name: layer_rank for name, layer_rank in ranks.items() if layer_rank}


def _factors(
    state: QuantizationState, whole: Mapping[str, Callable[[], Tensor]], ranks: Mapping[str, int]
) -> dict[str, Factors]:
    """Returns the factors by layer. The last bits depend on the machine, so the first process decomposes for all."""
    bits = factor_bits(state.recipe.weights)

    def decompose() -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        with state.session.progress("finding branches", len(ranks)) as advance:
            for name, rank in ranks.items():
                pair = factors(whole[name](), rank, bits)
                tensors |= _tensors(f"{name}.up", pair.up) | _tensors(f"{name}.down", pair.down)
                advance()
        return tensors

    tensors = state.session.ranks.from_first(decompose)
    assert tensors is not None
    return {name: Factors(*(_weight(f"{name}.{part}", tensors, bits) for part in PARTS)) for name in ranks}


def _tensors(name: str, weight: QuantizedWeight) -> dict[str, Tensor]:
    return {
        f"{name}.w_q": weight.w_q,
        f"{name}.scale": weight.qparams.scale,
        f"{name}.zero_point": weight.qparams.zero_point,
    }


def _weight(name: str, tensors: Mapping[str, Tensor], bits: int) -> QuantizedWeight:
    qparams = WeightQParams(tensors[f"{name}.scale"], tensors[f"{name}.zero_point"], bits)
    return QuantizedWeight(tensors[f"{name}.w_q"], qparams)


def branch_weight_bits(state: QuantizationState) -> int:
    """Returns the bits that the weights of all factors take."""
    return sum(math.prod(weight.w_q.shape) * weight.qparams.bits for weight in state.factors.values())


def _check(state: QuantizationState) -> None:
    if state.recipe.low_rank is not None and state.recipe.smoothing is not Smoothing.NONE:
        raise ValueError(
            f"low_rank is {state.recipe.low_rank} and smoothing {state.recipe.smoothing}: branches are "
            "computed from the weights before smoothing; set one of the two to none"
        )


ADD_BRANCHES = Stage(
    name="branches",
    summary="A branch of low rank beside every layer, with 16-bit inputs, takes out what magnifies input errors most.",
    run=add_branches,
    changes_network=True,
    wanted=lambda state: state.recipe.low_rank is not None,
    check=_check,
)
