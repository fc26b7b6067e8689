"""Channel scales that move from a layer's input into its weights without changing what the network computes.

The identity is ``W x = (W diag(s)) (diag(1/s) x)``. The module that produces x absorbs the 1/s: a norm in its affine
part, a layer in the rows of its weights. A nonlinear op between the two (e.g. a SiLU) rules this out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitbrush.network.family import Family
from bitbrush.network.fusions import TransformerBlock

LEAST = 1e-5
"""Smallest magnitude in a division, so that a channel that is always zero keeps a finite scale."""


@dataclass(frozen=True)
class SmoothableInput:
    """Input that the layers ``readers`` share; channel by channel it is the output of ``maker``.

    ``maker`` is a norm with an affine part, or a layer whose first output channels they are.
    """

    maker: str
    readers: tuple[str, ...]


def smoothable_inputs(denoiser: nn.Module, family: Family) -> tuple[SmoothableInput, ...]:
    """Finds inputs in transformer blocks: after each norm, after attention's values, and after a gated layer's values.

    Cross-attention's keys and values are left out, because the text encoder produces their input.
    """
    return tuple(
        shared_input
        for fusion in family.fusions(denoiser)
        if isinstance(fusion, TransformerBlock)
        for shared_input in _of_transformer(fusion)
    )


def _of_transformer(block: TransformerBlock) -> Iterator[SmoothableInput]:
    attention = block.self_attention
    yield SmoothableInput(block.norm1, (attention.query, attention.key, attention.value))
    yield SmoothableInput(attention.value, (attention.output,))
    if block.cross_attention is not None and block.norm2 is not None:
        yield SmoothableInput(block.norm2, (block.cross_attention.query,))
        yield SmoothableInput(block.cross_attention.value, (block.cross_attention.output,))
    yield SmoothableInput(block.norm3, (block.expand,))
    # The first half of its output channels are the values, the second half the gates.
    yield SmoothableInput(block.expand, (block.shrink,))


def channel_scale(weight: Tensor, extremes: Tensor, alpha: float) -> Tensor:
    """Computes ``s_j = max|x_j|^alpha / max|w_j|^(1 - alpha)`` of every channel j: SmoothQuant, equation 4.

    Args:
        weight: Weights of all layers that read the input, (sum of C_out, C_in).
        extremes: Extremes ``max|x_j|`` of the input, (C_in,).
        alpha: Exponent in [0, 1].

    Returns:
        Scales, (C_in,).
    """
    largest = weight.abs().amax(0).clamp_min(LEAST)
    return extremes.clamp_min(LEAST) ** alpha / largest ** (1 - alpha)


def reader_weight(denoiser: nn.Module, shared_input: SmoothableInput) -> Tensor:
    """Concatenates the weights of all layers that read an input, (sum of C_out, C_in)."""
    return torch.cat([_weight(denoiser, name) for name in shared_input.readers])


@torch.no_grad()
def smooth_(denoiser: nn.Module, inputs: Sequence[SmoothableInput], scales: Mapping[str, Tensor]) -> None:
    """Divides input channels by scales and multiplies the weights that read them; the result differs by rounding only.

    Args:
        denoiser: Network to change in place.
        inputs: Inputs to smooth.
        scales: Scales (C_in,), by the name of an input's first reader. An input without scales stays as it is.
    """
    for shared_input in inputs:
        scale = scales.get(shared_input.readers[0])
        if scale is None:
            continue
        maker = denoiser.get_submodule(shared_input.maker)
        for key in ("weight", "bias"):
            if getattr(maker, key, None) is not None:
                _rescale_rows(maker, key, scale.reciprocal())
        for name in shared_input.readers:
            weight = nn.Parameter(_weight(denoiser, name) * scale, requires_grad=False)
            denoiser.get_submodule(name).register_parameter("weight", weight)


def _weight(denoiser: nn.Module, name: str) -> Tensor:
    layer = denoiser.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer.weight.detach()


def _rescale_rows(module: nn.Module, key: str, factors: Tensor) -> None:
    """Multiplies the first rows of a parameter, one for each factor."""
    changed = getattr(module, key).detach().clone()
    changed[: len(factors)].mul_(factors.view(-1, *[1] * (changed.dim() - 1)))
    module.register_parameter(key, nn.Parameter(changed, requires_grad=False))
