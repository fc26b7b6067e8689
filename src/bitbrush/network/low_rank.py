"""Layers with a low-rank branch, which computes the most sensitive part of a layer with 16-bit activations.

The method is ``W x = R x + U D x`` with ``R = W - U D``, after SVDQuant (arXiv 2411.05007, section 4.2). The error of a
layer's quantized input reaches the output through ``R`` alone, which lacks the directions that magnify it most.

Deviations from the paper: the factors are integers of as many bits as the weights, instead of 16-bit floats. ``R``
absorbs their rounding errors. The factors are ordinary layers, which every runtime computes in integers. Inputs are not
smoothed before. Small layers get a lower rank.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.network.lazy_weights import (
    LazyLayer,
    LazyWeight,
    set_lazy_weight,
    set_quantized_weight,
    show_widths_,
    weight_shape,
)
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import QuantizedWeight, round_to_nearest, weight_qparams

MIN_FACTOR_BITS = 4
LARGEST_SHARE = 0.25
"""Largest size of a branch, as a fraction of its layer's weights."""
OVERSAMPLING, POWER_ITERATIONS = 8, 4
"""Parameters of the randomized decomposition (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4)."""


class BranchedLayer(nn.Module):
    """Layer ``residual(x) + up(down(x))``; ``up`` and ``down`` have no bias. A runtime may replace the parts.

    The parts are Conv2d or Linear like ``layer`` and have no values yet; the bias is the layer's own.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, rank: int) -> None:
        super().__init__()
        self.rank = rank
        show_widths_(self, layer)
        if isinstance(layer, nn.Conv2d):
            keys = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            geometry: dict[str, Any] = {key: getattr(layer, key) for key in keys} | {"bias": False, "device": "meta"}
            self.residual: nn.Module = nn.Conv2d(layer.in_channels, layer.out_channels, **geometry)
            self.down: nn.Module = nn.Conv2d(layer.in_channels, rank, **geometry)
            self.up: nn.Module = nn.Conv2d(rank, layer.out_channels, 1, bias=False, device="meta")
        else:
            self.residual = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            self.down = nn.Linear(layer.in_features, rank, bias=False, device="meta")
            self.up = nn.Linear(rank, layer.out_features, bias=False, device="meta")
        if layer.bias is not None:
            self.residual.bias = layer.bias

    def __getattr__(self, name: str) -> Any:
        """Shows the weight of ``residual`` until a runtime sets another one: Z-Image's network reads its dtype."""
        return self.residual.weight if name == "weight" else super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        """Computes ``residual(x) + up(down(x))``."""
        y: Tensor = self.residual(x) + self.up(self.down(x))
        return y


@dataclass(frozen=True)
class Factors:
    """Quantized factors ``up`` (C_out, rank, ...) and ``down`` (rank, C_in, ...)."""

    up: QuantizedWeight
    down: QuantizedWeight

    def to(self, device: torch.device) -> "Factors":
        """Copies the factors to a device."""
        return Factors(self.up.to(device), self.down.to(device))


def branch_(denoiser: nn.Module, ranks: Mapping[str, int]) -> None:
    """Replaces each named layer by a :class:`BranchedLayer` with parts ``name.residual``, ``.down`` and ``.up``."""
    for name, rank in ranks.items():
        layer = denoiser.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        parent, _, child = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), child, BranchedLayer(layer, rank))


def branch_ranks(denoiser: nn.Module) -> dict[str, int]:
    """Returns the ranks of a denoiser's branches by layer name, as passed to :func:`branch_`."""
    return {name: module.rank for name, module in denoiser.named_modules() if isinstance(module, BranchedLayer)}


def branch_layers(denoiser: nn.Module) -> frozenset[str]:
    """Returns the names of all factors in a denoiser."""
    return frozenset(f"{name}.{part}" for name in branch_ranks(denoiser) for part in ("down", "up"))


def factor_bits(weight_bits: int) -> int:
    """Returns the weight bits of the factors for layers with ``weight_bits``."""
    return max(weight_bits, MIN_FACTOR_BITS)


def rank_of(layer: nn.Module, rank: int) -> int:
    """Limits ``rank`` so that the branch stays within its fraction of the layer's weights; 0 means no branch."""
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return 0
    out, *columns = weight_shape(layer)
    inner = torch.Size(columns).numel()
    return min(rank, int(LARGEST_SHARE * out * inner / (out + inner)))


@torch.no_grad()
def factors(weight: Tensor, rank: int, bits: int) -> Factors:
    """Computes quantized factors whose product is near the best approximation of ``weight`` of that rank.

    ``up`` is the quantized left singular vectors, and ``down`` the quantized least-squares fit given ``up``.

    Args:
        weight: Shape (C_out, C_in, ...).
        rank: Rank of the factors.
        bits: Bits of their elements.

    Returns:
        The factors, on the CPU.
    """
    # In float64 LAPACK's variation in the last bits changes no integer. Resumed work must compute the same integers,
    # wherever the layer is.
    columns = weight.flatten(1).cpu().double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left_vectors, *_ = torch.svd_lowrank(columns, min(rank + OVERSAMPLING, *columns.shape), POWER_ITERATIONS)
    up = _rounded(left_vectors[:, :rank].float(), bits)
    down = _rounded(torch.linalg.lstsq(up.dequantize().double(), columns).solution.float(), bits)
    if weight.dim() > 2:
        up = QuantizedWeight(up.w_q[:, :, None, None], up.qparams)
        down = QuantizedWeight(down.w_q.view(rank, *weight.shape[1:]), down.qparams)
    return Factors(up, down)


def _rounded(weight: Tensor, bits: int) -> QuantizedWeight:
    contiguous = weight.contiguous()  # like weights read from an artifact, so that sums have the same order
    return round_to_nearest(contiguous, weight_qparams(contiguous, bits, WeightRange.MSE))


def weight_reader(layer: nn.Module) -> Callable[[], Tensor]:
    """Returns a function that reads the layer's weight in float32, in newly allocated memory."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    if layer._parameters["weight"] is None:
        assert isinstance(layer, LazyLayer)
        return layer.lazy_weight.read
    return partial(torch.clone, layer.weight.detach().float())


def set_factors(branched: nn.Module, read: Callable[[], Tensor], pair: Factors) -> None:
    """Sets the values of a branched layer's parts.

    Args:
        branched: A :class:`BranchedLayer`.
        read: Reads the weight of the whole layer; the residual is computed from it at each access.
        pair: Factors of that weight.
    """
    assert isinstance(branched, BranchedLayer)
    set_quantized_weight(branched.down, pair.down, None)
    set_quantized_weight(branched.up, pair.up, None)
    set_lazy_weight(branched.residual, LazyWeight(partial(_residual, read, pair)))


def _residual(read: Callable[[], Tensor], pair: Factors) -> Tensor:
    weight = read()
    up, down = pair.up.dequantize().flatten(1), pair.down.dequantize().flatten(1)
    return weight.flatten(1).addmm_(up, down, alpha=-1).view(weight.shape)
