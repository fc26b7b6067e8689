"""Ops of a denoiser that a runtime may fuse, or compute more precisely, described by the names of their modules.

The file of each family finds them; runtimes see only these descriptions. A described op computes what its docstring
says, whatever its class.
"""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class PreciseNorm:
    """GroupNorm before a ``layer`` with 16-bit inputs, which must return float32.

    bfloat16 would keep only 8 bits of its output.
    """

    name: str
    layer: str


@dataclass(frozen=True)
class UpsampledConv:
    """Convolution ``conv(x magnified twice, each pixel repeated)``; the module ``name`` is called with ``x`` alone."""

    name: str
    conv: str


@dataclass(frozen=True)
class ResidualBlock:
    """Residual block of a U-Net, with GroupNorms, called with ``x`` and ``t``.

    It computes ``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time_projection(silu(t)))))``. Without
    ``shortcut``, x itself is added; without ``time_projection``, nothing.
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
    """Multi-head attention ``output(softmax(query(x) key(c)^T / sqrt(d)) value(c))``; c = x in self-attention."""

    query: str
    key: str
    value: str
    output: str
    heads: int


@dataclass(frozen=True)
class TransformerBlock:
    """Residual self-attention, cross-attention (None if absent) and feed-forward, a LayerNorm before each.

    The block is called with ``x`` and ``encoder_hidden_states`` c. Feed-forward is ``shrink(value gelu(gate))``; value
    and gate are the halves of ``expand(x)``.
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
    """Transformer over pixels as tokens: ``x + proj_out(blocks(proj_in(norm(x))))`` with a GroupNorm.

    The module is called with ``x`` and ``encoder_hidden_states`` and returns a tuple. The projections are 1x1
    convolutions or Linears.
    """

    name: str
    norm: str
    proj_in: str
    blocks: tuple[str, ...]
    proj_out: str


Fusion: TypeAlias = PreciseNorm | UpsampledConv | ResidualBlock | TransformerBlock | ImageTransformer
