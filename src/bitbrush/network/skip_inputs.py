"""Convolutions that read a skip concatenation, split in two so that each half is quantized by itself.

The identity is ``conv(cat(h, s)) = hidden(h) + skip(s)``, the weight cut along its input channels: Q-Diffusion's split
shortcut (arXiv 2302.04304). The outputs of a U-Net's decoder and those of its encoder have different ranges, and so
have the weights that read them. One range for both is too wide for one of them.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.network.family import Family
from bitbrush.network.lazy_weights import (
    LazyLayer,
    LazyWeight,
    set_lazy_weight,
    shallow_copy,
    show_widths_,
)


class SplitConv2d(nn.Module):
    """Convolution ``hidden(x[:, :begin]) + skip(x[:, begin:])`` of ``x`` (N, C_in, H, W).

    A runtime may replace the two parts.
    """

    def __init__(self, conv: nn.Conv2d, begin: int) -> None:
        super().__init__()
        show_widths_(self, conv)
        self.begin, self._widths = begin, [begin, conv.in_channels - begin]
        self.hidden, self.skip = _part(conv, 0, begin), _part(conv, begin, conv.in_channels)
        if conv.bias is not None:
            self.hidden.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """Computes ``hidden(x[:, :begin]) + skip(x[:, begin:])``."""
        hidden, skip = x.split(self._widths, 1)
        y: Tensor = self.hidden(hidden) + self.skip(skip)
        return y


def _part(conv: nn.Conv2d, begin: int, end: int) -> nn.Conv2d:
    """Creates the convolution of input channels ``begin`` to ``end``; its bias is zeros if ``conv`` has a bias.

    With zeros, learned rounding can correct the mean error of either half.
    """
    keys = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    geometry: dict[str, Any] = {key: getattr(conv, key) for key in keys}
    part = nn.Conv2d(end - begin, conv.out_channels, bias=False, device="meta", **geometry)
    if conv._parameters["weight"] is None:
        assert isinstance(conv, LazyLayer)
        set_lazy_weight(part, LazyWeight(partial(_read, conv.lazy_weight, begin, end)))
    else:
        part.weight = nn.Parameter(conv.weight.detach()[:, begin:end].contiguous(), requires_grad=False)
    if conv.bias is not None:
        part.bias = nn.Parameter(torch.zeros_like(conv.bias), requires_grad=False)
    return part


def _read(weight: LazyWeight, begin: int, end: int) -> Tensor:
    return weight.read()[:, begin:end].contiguous()


def split_(denoiser: nn.Module, begins: Mapping[str, int]) -> None:
    """Splits the named convolutions at the channel where the skip begins, into ``name.hidden`` and ``name.skip``.

    The denoiser computes the same values, except for the order of sums.
    """
    for name, begin in begins.items():
        conv = denoiser.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        assert conv.groups == 1
        parent, _, child = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), child, SplitConv2d(conv, begin))


def split_begins(denoiser: nn.Module) -> dict[str, int]:
    """Returns where the convolutions of a denoiser are split, by name, as passed to :func:`split_`."""
    split = {name: module for name, module in denoiser.named_modules() if isinstance(module, SplitConv2d)}
    return {name: module.begin for name, module in split.items()}


def with_split_skips(denoiser: nn.Module, family: Family, exclude: Sequence[str] = ()) -> nn.Module:
    """Returns a shallow copy with split skip convolutions; the denoiser itself if they are split already.

    Args:
        denoiser: Network to copy.
        family: Its architecture.
        exclude: Patterns of layer names that stay whole.

    Raises:
        ValueError: The denoiser has no such convolutions.
    """
    begins = family.skip_readers(denoiser)
    if not begins:
        raise ValueError(
            f"skip_inputs is split, but no convolution of this {type(denoiser).__name__} is known to read a skip "
            "concatenation: those of U-Nets of the plain kind do; use joint, or another method than qdiffusion"
        )
    whole = {
        name: begin
        for name, begin in begins.items()
        if isinstance(denoiser.get_submodule(name), nn.Conv2d)
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not whole:
        return denoiser
    network = shallow_copy(denoiser)
    split_(network, whole)
    return network
