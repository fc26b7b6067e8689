"""Channels whose scale can move from a layer's input into its weights without changing what the network computes.

``W x = (W diag(s)) (diag(1/s) x)``, and what makes x takes on the 1/s: a norm in its affine part, a layer in the rows
of its weights. Where nothing linear lies between the two (a SiLU, say) there is no such place.
"""

from collections.abc import Iterator, Mapping, Sequence
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


def channel_scale(weight: Tensor, extremes: Tensor, alpha: float) -> Tensor:
    """``s_j = max|x_j|^alpha / max|w_j|^(1 - alpha)`` of every channel j, (C_in,): SmoothQuant, equation 4.

    ``weight``: of all readers of the input, (all their C_out, C_in); ``extremes``: ``max|x_j|``, (C_in,).
    """
    largest = weight.abs().amax(0).clamp_min(LEAST)
    return extremes.clamp_min(LEAST) ** alpha / largest ** (1 - alpha)


def reader_weight(denoiser: nn.Module, one: SmoothableInput) -> Tensor:
    """The rows of all readers of an input, (all their C_out, C_in)."""
    return torch.cat([_weight(denoiser, name) for name in one.readers])


@torch.no_grad()
def smooth_(denoiser: nn.Module, inputs: Sequence[SmoothableInput], scales: Mapping[str, Tensor]) -> None:
    """Divides the channels of inputs by scales that the weights of their readers are multiplied by.

    ``scales``: (C_in,), by the first reader's name; an input without one stays as it is. The denoiser computes what it
    did, but for rounding of floats.
    """
    for one in inputs:
        scale = scales.get(one.readers[0])
        if scale is None:
            continue
        maker = denoiser.get_submodule(one.maker)
        for key in ("weight", "bias"):
            if getattr(maker, key, None) is not None:
                _rescale_rows(maker, key, scale.reciprocal())
        for name in one.readers:
            weight = nn.Parameter(_weight(denoiser, name) * scale, requires_grad=False)
            denoiser.get_submodule(name).register_parameter("weight", weight)


def _weight(denoiser: nn.Module, name: str) -> Tensor:
    layer = denoiser.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer.weight.detach()


def _rescale_rows(module: nn.Module, key: str, factors: Tensor) -> None:
    """The first rows of a parameter, one for each factor."""
    changed = getattr(module, key).detach().clone()
    changed[: len(factors)].mul_(factors.view(-1, *[1] * (changed.dim() - 1)))
    module.register_parameter(key, nn.Parameter(changed, requires_grad=False))
