"""Conversion of a quantized denoiser to named tensors and back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.network.first_token import FirstToken
from bitbrush.network.layers import QuantizedLayer
from bitbrush.network.lazy_weights import state_readers
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.packing import pack, unpack
from bitbrush.numerics.weights import QuantizedWeight, WeightQParams
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
    """Restores a layer from the tensors of :func:`layer_tensors`.

    Args:
        name: Layer name.
        shape: Shape of the weight.
        bits: Weight bits.
        tensors: Tensors of the artifact by name.

    Returns:
        The quantized layer.

    Raises:
        KeyError: A tensor is missing.
        ValueError: The weight has group-wise scales, as in earlier versions, or a wrong number of scales.
    """

    def entry(key: str) -> Tensor:
        return tensors[f"{name}.{key}"]

    timesteps, activation_bits = entry("activation_timesteps").tolist(), entry("activation_bits").tolist()
    activations: Activations
    if timesteps:
        scales, zero_points = entry("activation_scale").tolist(), entry("activation_zero_point").tolist()
        all_qparams = (QParams(*values) for values in zip(scales, zero_points, activation_bits, strict=True))
        activations = ActivationSchedule(tuple(timesteps), tuple(all_qparams))
    else:
        activations = DynamicRanges(*activation_bits)
    if entry("weight_scale").dim() != 1:
        raise ValueError(f"layer {name} has scales for groups of its inputs (group_size); quantize again without them")
    qparams = WeightQParams(entry("weight_scale"), entry("weight_zero_point"), bits)
    if not len(qparams.scale) == len(qparams.zero_point) == shape[0]:
        raise ValueError(f"layer {name} has {len(qparams.scale)} weight scales for {shape[0]} output channels")
    weight = QuantizedWeight(unpack(entry("weight"), bits, shape), qparams)
    known = f"{name}.first_input" in tensors
    first = FirstToken(entry("first_input"), entry("first_output")) if known else None
    return QuantizedLayer(name, weight, tensors.get(f"{name}.bias"), activations, first)


def other_tensors(denoiser: nn.Module, layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the state of everything that is not quantized: norms, embeddings, excluded layers."""
    quantized = {f"{name}.{key}" for name in layers for key in ("weight", "bias")}
    return {key: read().contiguous() for key, read in state_readers(denoiser).items() if key not in quantized}
