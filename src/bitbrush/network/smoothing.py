"""Channels whose scale can move from a layer's input into its weights without changing what the network computes.

``W x = (W diag(s)) (diag(1/s) x)``, and what makes x takes on the 1/s: a norm in its affine part, a layer in the rows
of its weights. Where nothing linear lies between the two (a SiLU, say) there is no such place.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitbrush.network.family import Family
from bitbrush.network.fusions import TransformerBlock

LEAST = 1e-5
"""Of a magnitude that is divided by: a channel that is always zero keeps a finite scale."""


@dataclass(frozen=True)
class SmoothableInput:
    """The layers ``readers`` are given the same input, channel by channel the output of ``maker``.

    ``maker``: a norm with an affine part, or a layer whose first output channels they are.
    """

    maker: str
    readers: tuple[str, ...]


def smoothable_inputs(denoiser: nn.Module, family: Family) -> tuple[SmoothableInput, ...]:
    """Of transformer blocks: behind each norm, behind the values of attention, and behind a gated layer's values.

    Cross-attention's keys and values are left out: the text encoder makes their input.
    """
    return tuple(
        found
        for fusion in family.fusions(denoiser)
        if isinstance(fusion, TransformerBlock)
        for found in _of_transformer(fusion)
    )


def _of_transformer(block: TransformerBlock) -> Iterator[SmoothableInput]:
    own = block.self_attention
    yield SmoothableInput(block.norm1, (own.query, own.key, own.value))
    yield SmoothableInput(own.value, (own.output,))
    if block.cross_attention is not None and block.norm2 is not None:
        yield SmoothableInput(block.norm2, (block.cross_attention.query,))
        yield SmoothableInput(block.cross_attention.value, (block.cross_attention.output,))
    yield SmoothableInput(block.norm3, (block.expand,))
    yield SmoothableInput(block.expand, (block.shrink,))  # its first half are the values, the rest the gates


@torch.no_grad()
def smooth_(
    denoiser: nn.Module, inputs: tuple[SmoothableInput, ...], extremes: Mapping[str, Tensor], alpha: float
) -> None:
    """Moves ``s_j = max|x_j|^alpha / max|w_j|^(1 - alpha)`` of each channel j from the inputs into the weights.

    SmoothQuant (arXiv 2211.10438, equation 4). ``extremes``: the largest magnitude of every channel of a reader's
    input, (C_in,). The denoiser computes what it did, but for rounding of floats.
    """
    for one in inputs:
        readers, maker = [_weight(denoiser, name) for name in one.readers], denoiser.get_submodule(one.maker)
        weights = torch.stack([weight.abs().amax(0) for weight in readers]).amax(0).clamp_min(LEAST)
        scale = extremes[one.readers[0]].clamp_min(LEAST) ** alpha / weights ** (1 - alpha)
        for key in ("weight", "bias"):
            if getattr(maker, key, None) is not None:
                _rescale_rows(maker, key, scale.reciprocal())
        for name, weight in zip(one.readers, readers, strict=True):
            denoiser.get_submodule(name).register_parameter("weight", nn.Parameter(weight * scale, requires_grad=False))


def _weight(denoiser: nn.Module, name: str) -> Tensor:
    layer = denoiser.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer.weight.detach()


def _rescale_rows(module: nn.Module, key: str, factors: Tensor) -> None:
    """The first rows of a parameter, one for each factor."""
    changed = getattr(module, key).detach().clone()
    changed[: len(factors)].mul_(factors.view(-1, *[1] * (changed.dim() - 1)))
    module.register_parameter(key, nn.Parameter(changed, requires_grad=False))
