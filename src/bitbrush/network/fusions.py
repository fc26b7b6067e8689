"""Parts of a denoiser that a runtime may compute in one go, or more precisely, described by their modules' names.

A family's file finds them; runtimes know them by these descriptions alone. What is described here is computed as its
docstring says, whatever class it is of.
"""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class PreciseNorm:
    """A GroupNorm that stands before a ``layer`` of 16-bit inputs, and has to answer in float32 for them.

    bfloat16 keeps 8 bits of what it would hand on.
    """

    name: str
    layer: str


@dataclass(frozen=True)
class UpsampledConv:
    """``conv(x magnified twice, each pixel repeated)`` where the module ``name`` is called with ``x`` alone."""

    name: str
    conv: str


@dataclass(frozen=True)
class ResidualBlock:
    """``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time_projection(silu(t)))))``, GroupNorms.

    Called with ``x`` and ``t``. Without ``shortcut`` x itself is added, without ``time_projection`` nothing.
    """

    name: str
    norm1: str
    conv1: str
    time_projection: str | None
    norm2: str
    conv2: str
    shortcut: str | None


@dataclass(frozen=True)
class Attention:
    """``output(softmax(query(x) key(c)^T / sqrt(d)) value(c))`` of ``heads`` heads, c = x for self-attention."""

    query: str
    key: str
    value: str
    output: str
    heads: int


@dataclass(frozen=True)
class TransformerBlock:
    """Residual self-attention, cross-attention (None: there is none) and feed-forward, a LayerNorm before each.

    Called with ``x`` and ``encoder_hidden_states`` c. Feed-forward is ``shrink(value gelu(gate))`` with value and gate
    the halves of ``expand(x)``.
    """

    name: str
    norm1: str
    self_attention: Attention
    norm2: str | None
    cross_attention: Attention | None
    norm3: str
    expand: str
    shrink: str


@dataclass(frozen=True)
class ImageTransformer:
    """``x + proj_out(blocks(proj_in(norm(x))))``, a GroupNorm, the blocks on the pixels as tokens.

    Called with ``x`` and ``encoder_hidden_states``, for a tuple. The projections are 1x1 convolutions or Linears.
    """

    name: str
    norm: str
    proj_in: str
    blocks: tuple[str, ...]
    proj_out: str


Fusion: TypeAlias = PreciseNorm | UpsampledConv | ResidualBlock | TransformerBlock | ImageTransformer
