"""Conversion of a quantized denoiser to named tensors and back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.network.first_token import FirstToken
from bitbrush.network.layers import QuantizedLayer
from bitbrush.network.lazy_weights import state_readers
from bitbrush.network.other_networks import TABLE_BITS
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.packing import pack, unpack
from bitbrush.numerics.weights import QuantizedWeight, WeightQParams
from bitbrush.sources.networks import LARGEST_VALUE, unusable_values
from bitbrush.timeline.schedule import Activations, ActivationSchedule, DynamicRanges

LAYER_KEYS = frozenset(
    (
        "weight",
        "weight_scale",
        "weight_zero_point",
        "activation_timesteps",
        "activation_scale",
        "activation_zero_point",
        "activation_bits",
        "bias",
        "first_input",
        "first_output",
    )
)
"""Stored tensors of a quantized layer; ``bias`` is optional, and the last two need a known first token."""
TABLE_KEYS = frozenset(("weight", "weight_scale", "weight_zero_point"))
"""Stored tensors of an embedding table."""


def layer_tensors(layer: QuantizedLayer) -> dict[str, Tensor]:
    """Converts a layer to packed integer weights, scale and zero point per channel, and activation qparams by timestep.

    Dynamic ranges are stored as their bits without timesteps.
    """
    all_qparams: tuple[QParams, ...] = ()
    timesteps: tuple[float, ...] = ()
    match layer.activations:
        case ActivationSchedule():
            all_qparams, timesteps = layer.activations.qparams, layer.activations.timesteps
            bits = [qparams.bits for qparams in all_qparams]
        case DynamicRanges(same):
            bits = [same]
    tensors = {
        "weight": pack(layer.weight.w_q, layer.weight.qparams.bits),
        "weight_scale": layer.weight.qparams.scale,
        "weight_zero_point": layer.weight.qparams.zero_point,
        "activation_timesteps": torch.tensor(timesteps, dtype=torch.float32),
        "activation_scale": torch.tensor([qparams.scale for qparams in all_qparams], dtype=torch.float32),
        "activation_zero_point": torch.tensor([qparams.zero_point for qparams in all_qparams], dtype=torch.int32),
        "activation_bits": torch.tensor(bits, dtype=torch.uint8),
    }
    if layer.bias is not None:
        tensors["bias"] = layer.bias
    if layer.first is not None:
        tensors |= {"first_input": layer.first.input, "first_output": layer.first.output}
    return {f"{layer.name}.{key}": tensor.contiguous() for key, tensor in tensors.items()}


def layer_from_tensors(name: str, shape: tuple[int, ...], bits: int, tensors: Mapping[str, Tensor]) -> QuantizedLayer:
    """Restores a layer from the tensors of :func:`layer_tensors` and checks each one's dtype, shape and values.

    Args:
        name: Layer name.
        shape: Shape of the weight.
        bits: Weight bits.
        tensors: Tensors of the artifact by name.

    Returns:
        The quantized layer.

    Raises:
        KeyError: A tensor is missing.
        ValueError: A tensor has another dtype or shape, or values that no quantization has; the weight has group-wise
            scales, as in earlier versions.
    """
    read = _LayerReader(name, tensors)
    channels = shape[0]
    weight = _weight(read, shape, bits)
    bias = read.finite("bias", channels) if f"{name}.bias" in tensors else None
    first = None
    if f"{name}.first_input" in tensors or f"{name}.first_output" in tensors:
        first = FirstToken(read.finite("first_input", math.prod(shape[1:])), read.finite("first_output", channels))
    return QuantizedLayer(name, weight, bias, _activations(read), first)


def table_tensors(name: str, table: QuantizedWeight) -> dict[str, Tensor]:
    """Converts an embedding table to packed integers, and a scale and zero point per row."""
    return {
        f"{name}.weight": pack(table.w_q, table.qparams.bits),
        f"{name}.weight_scale": table.qparams.scale,
        f"{name}.weight_zero_point": table.qparams.zero_point,
    }


def table_from_tensors(name: str, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> QuantizedWeight:
    """Restores an embedding table from the tensors of :func:`table_tensors` and checks them.

    Raises:
        KeyError: A tensor is missing.
        ValueError: A tensor has another dtype or shape, or values that no quantization has.
    """
    return _weight(_LayerReader(name, tensors), shape, TABLE_BITS)


def _weight(read: "_LayerReader", shape: tuple[int, ...], bits: int) -> QuantizedWeight:
    scale = read.positive("weight_scale", shape[0])
    zero_point = read("weight_zero_point", torch.uint8, shape[0])
    if (largest := int(zero_point.max())) >> bits:
        raise ValueError(f"{read.name}.weight_zero_point is {largest}; with {bits} bits it is below {1 << bits}")
    packed = read("weight", torch.uint8, -(-math.prod(shape) * bits // 8))
    return QuantizedWeight(unpack(packed, bits, shape), WeightQParams(scale, zero_point, bits))


def _activations(read: "_LayerReader") -> Activations:
    timesteps = read.finite("activation_timesteps").tolist()
    steps = len(timesteps)
    activation_bits = read("activation_bits", torch.uint8, max(steps, 1)).tolist()
    scales = read.positive("activation_scale", steps).tolist()
    zero_points = read("activation_zero_point", torch.int32, steps).tolist()
    if not timesteps:
        return DynamicRanges(*activation_bits)
    all_qparams = (QParams(*values) for values in zip(scales, zero_points, activation_bits, strict=True))
    return ActivationSchedule(tuple(timesteps), tuple(all_qparams))


@dataclass(frozen=True)
class _LayerReader:
    """Reader of a layer's tensors that checks dtype, shape and values."""

    name: str
    tensors: Mapping[str, Tensor]

    def __call__(self, key: str, dtype: torch.dtype, length: int | None) -> Tensor:
        """Reads a tensor of one dimension, with ``length`` elements unless that is None."""
        tensor = self.tensors[f"{self.name}.{key}"]
        if key == "weight_scale" and tensor.dim() == 2:
            raise ValueError(
                f"layer {self.name} has scales for groups of its inputs (group_size); quantize again without them"
            )
        expected = (tensor.numel() if length is None else length,)
        if tensor.dtype != dtype or tensor.shape != expected:
            raise ValueError(
                f"{self.name}.{key} has shape {tuple(tensor.shape)} of {tensor.dtype}; {expected} of {dtype} is due"
            )
        return tensor

    def finite(self, key: str, length: int | None = None) -> Tensor:
        """Reads finite float32 values."""
        tensor = self(key, torch.float32, length)
        if unusable := unusable_values({key: tensor}):
            raise ValueError(f"{self.name} {unusable}")
        return tensor

    def positive(self, key: str, length: int) -> Tensor:
        """Reads positive finite float32 values."""
        tensor = self(key, torch.float32, length)
        low, high = (end.item() for end in tensor.aminmax()) if length else (1.0, 1.0)
        if not 0 < low <= high <= LARGEST_VALUE:
            raise ValueError(
                f"{self.name}.{key} holds {low:g} to {high:g}; scales are positive and at most {LARGEST_VALUE:.0f}"
            )
        return tensor


def other_tensors(denoiser: nn.Module, layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the state of everything that is not quantized: norms, embeddings, excluded layers."""
    quantized = {f"{name}.{key}" for name in layers for key in ("weight", "bias")}
    return {key: read().contiguous() for key, read in state_readers(denoiser).items() if key not in quantized}
