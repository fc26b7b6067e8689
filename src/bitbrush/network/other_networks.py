"""Networks of a pipeline beside its denoiser that can be quantized: text encoders and the decoder of a VAE."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bitbrush.network.layers import LayerSpec, QuantizedLayer
from bitbrush.network.own_dtype import is_autoencoder, is_text_encoder
from bitbrush.network.packed_weight import PackedEmbedding
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import QuantizedWeight, round_to_nearest, weight_qparams

DECODER = "decoder"
TABLE_BITS = 8
CONVOLUTIONS = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Convolutions that no runtime multiplies in integers."""


@dataclass(frozen=True)
class Embeddings:
    """Embedding tables of a text encoder.

    Args:
        tables: Integers by name, with 8 bits and a scale for each row.
        tied: Further embeddings that look up one of the tables, by name, and the name of that table.
    """

    tables: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class QuantizedNetwork:
    """Integers of a network beside the denoiser; names are those in the component.

    Args:
        specs: Treatment of the Conv2d and Linear layers of the part that is quantized.
        layers: Quantized layers.
        embeddings: Embedding tables of a text encoder.
    """

    specs: tuple[LayerSpec, ...]
    layers: tuple[QuantizedLayer, ...]
    embeddings: Embeddings = Embeddings()


def text_encoders(pipe: Any) -> dict[str, nn.Module]:
    """Returns the text encoders of a pipeline by name."""
    parts = {name: part for name, part in pipe.components.items() if is_text_encoder(name)}
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


def autoencoders(pipe: Any) -> dict[str, nn.Module]:
    """Returns the networks of a pipeline that decode latents to images, by name."""
    parts = pipe.components.items()
    return {name: part for name, part in parts if isinstance(part, nn.Module) and is_autoencoder(part)}


def integer_part(network: nn.Module) -> tuple[str, nn.Module]:
    """Returns the part of a component that is quantized, after its name: the decoder of a VAE, or all of it, ""."""
    return (DECODER, network.get_submodule(DECODER)) if is_autoencoder(network) else ("", network)


def round_embeddings(network: nn.Module) -> Embeddings:
    """Rounds the table of tokens of a text encoder.

    Positions and relative distances have small tables of their own, which stay in floating point.
    """
    tokens = _token_table(network)
    if tokens is None:
        return Embeddings()
    first, *others = (
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Embedding) and module.weight is tokens.weight
    )
    return Embeddings({first: _rounded_table(tokens)}, dict.fromkeys(others, first))


def table_shapes(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Returns the shapes of the tables that :func:`round_embeddings` rounds, by name."""
    tokens = _token_table(network)
    if tokens is None:
        return {}
    name = next(name for name, module in network.named_modules() if module is tokens)
    return {name: (tokens.num_embeddings, tokens.embedding_dim)}


def _token_table(network: nn.Module) -> nn.Embedding | None:
    tokens = getattr(network, "get_input_embeddings", lambda: None)()
    return tokens if isinstance(tokens, nn.Embedding) else None


def _rounded_table(embedding: nn.Embedding) -> QuantizedWeight:
    """Rounds an embedding table to 8 bits per row.

    The rows are those that a lookup gives: some encoders multiply them by a constant, which the scales take over.
    """
    indices = torch.arange(embedding.num_embeddings, device=embedding.weight.device)
    parts = []
    with torch.no_grad():
        for some in indices.split(1 << 14):
            rows = embedding(some).float().cpu()
            parts.append(round_to_nearest(rows, weight_qparams(rows, TABLE_BITS, WeightRange.MIN_MAX)))
    qparams = parts[0].qparams
    scale, zero_point = (torch.cat([getattr(part.qparams, key) for part in parts]) for key in ("scale", "zero_point"))
    return QuantizedWeight(torch.cat([part.w_q for part in parts]), type(qparams)(scale, zero_point, TABLE_BITS))


def set_embeddings(network: nn.Module, embeddings: Embeddings, dtype: torch.dtype) -> None:
    """Replaces the embeddings of a text encoder by packed ones, which give ``dtype``; tied ones become one module."""
    for table, weight in embeddings.tables.items():
        packed = PackedEmbedding(weight, dtype)
        for name in (table, *(name for name, own in embeddings.tied.items() if own == table)):
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, packed)


def require_multipliable(name: str, network: nn.Module) -> None:
    """Checks that a VAE's decoder has the layers that runtimes multiply in integers.

    Raises:
        ValueError: It has none, or other convolutions; the message says what to do.
    """
    part = integer_part(network)[1]
    others = sorted({type(module).__name__ for module in part.modules() if isinstance(module, CONVOLUTIONS)})
    if others:
        raise ValueError(
            f"networks has vae, but the decoder of {name} ({type(network).__name__}) has {' and '.join(others)} "
            "layers, which no runtime multiplies in integers; leave vae out of networks"
        )
