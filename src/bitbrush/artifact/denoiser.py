"""Quantized denoiser read from its folder, layer by layer."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
from accelerate import init_empty_weights
from torch import Tensor, nn

from bitbrush.artifact.tensor_file import TensorFile
from bitbrush.artifact.tensors import LAYER_KEYS, layer_from_tensors
from bitbrush.network.layers import QuantizedLayer
from bitbrush.network.low_rank import branch_
from bitbrush.network.skip_inputs import split_
from bitbrush.runtime.choose import Choice
from bitbrush.runtime.interface import Execution
from bitbrush.runtime.lowered import lower
from bitbrush.session.allocator import return_freed_memory
from bitbrush.session.progress import Progress, silent
from bitbrush.sources.networks import KEYS_SHOWN, is_finite

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = "config.json"


def load_denoiser(folder: Path, choice: Choice) -> nn.Module:
    """Loads the denoiser of an artifact and lowers it with the selected runtime.

    Args:
        folder: Folder of the denoiser within the artifact.
        choice: Runtime, type and memory mode.

    Returns:
        The denoiser in evaluation mode, without gradients.

    Raises:
        ValueError: The folder's tensors do not match its configuration.
        KeyError: A tensor is missing.
    """
    return_freed_memory()  # before large allocations: the heap would keep its peak size
    denoiser, layers = _read_denoiser(folder)
    lower(denoiser, choice, layers)
    return denoiser.eval().requires_grad_(False)


def check_denoiser(folder: Path) -> nn.Module:
    """Reads everything that :func:`load_denoiser` reads, layer by layer, and returns the denoiser without values.

    Args:
        folder: Folder of the denoiser within the artifact.

    Returns:
        The denoiser on the meta device.

    Raises:
        ValueError: The folder's tensors do not match its configuration, or hold NaN or infinity.
        KeyError: A tensor is missing.
    """
    denoiser, layers = _read_denoiser(folder)
    for _ in layers:
        pass
    tensors = TensorFile(folder / WEIGHTS)
    if bad := [name for name in tensors if not is_finite(tensors[name])]:
        raise ValueError(f"the denoiser holds NaN or infinity in {', '.join(bad[:KEYS_SHOWN])}")
    return denoiser.to("meta")


def _read_denoiser(folder: Path) -> tuple[nn.Module, Iterator[QuantizedLayer]]:
    """Returns the denoiser with its full-precision values, and an iterator that reads the quantized layers lazily."""
    denoiser, quantization = _empty_denoiser(folder)
    bits: dict[str, int] = quantization["weight_bits"]
    tensors = TensorFile(folder / WEIGHTS)
    quantized = {f"{name}.{key}" for name in bits for key in LAYER_KEYS}
    rest = {name: tensors[name] for name in tensors if name not in quantized}
    missing, unexpected = denoiser.load_state_dict(rest, strict=False, assign=True)
    lacking = [name for name in missing if name.rpartition(".")[0] not in bits]
    if lacking or unexpected:
        raise ValueError(f"its tensors are not the configuration's: {', '.join((lacking or unexpected)[:3])}")
    return denoiser, quantized_layers(denoiser, bits, tensors)


def denoiser_executions(folder: Path, choice: Choice, progress: Progress = silent) -> tuple[Execution, ...]:
    """Returns how the selected runtime would execute each quantized layer, without computing anything.

    Args:
        folder: Folder of the denoiser within the artifact.
        choice: Runtime, type and memory mode.
        progress: Callback that receives progress reports.

    Returns:
        One execution per quantized layer, in order.
    """
    denoiser, quantization = _empty_denoiser(folder)
    bits: dict[str, int] = quantization["weight_bits"]
    found = []
    with progress("inspecting", len(bits)) as advance:
        for layer in quantized_layers(denoiser, bits, TensorFile(folder / WEIGHTS)):
            found.append(choice.runtime.execution(denoiser.get_submodule(layer.name), layer))
            advance()
    return tuple(found)


def denoiser_of(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Builds a denoiser with an artifact's layers and the initial values of its class.

    Returns:
        The denoiser, and the quantization configuration from its ``config.json``.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    packed = config.pop("quantization_config")
    require_uncorrected(packed)
    denoiser: nn.Module = getattr(diffusers, config["_class_name"]).from_config(config)
    split_(denoiser, packed.get("split_skips", {}))
    branch_(denoiser, packed.get("low_ranks", {}))
    return denoiser, packed


def require_uncorrected(packed: Mapping[str, Any]) -> None:
    """Rejects artifacts with output correction, which earlier versions made with ``output_means = correct``.

    Raises:
        ValueError: The configuration requests an output correction.
    """
    if packed.get("correction") is not None:
        raise ValueError("its output is corrected (output_means), which this bitbrush has no more; quantize again")


def _empty_denoiser(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Builds the denoiser of :func:`denoiser_of` with all parameters on the meta device."""
    with init_empty_weights(include_buffers=False):
        return denoiser_of(folder)


def quantized_layers(
    denoiser: nn.Module, bits: Mapping[str, int], tensors: Mapping[str, Tensor]
) -> Iterator[QuantizedLayer]:
    """Yields the quantized layers of an artifact's denoiser and reads each one lazily.

    Args:
        denoiser: Denoiser with the artifact's layers.
        bits: Weight bits by layer name.
        tensors: Tensors of the artifact by name.

    Yields:
        Quantized layers in the order of ``bits``.

    Raises:
        KeyError: A tensor of a layer is missing.
        ValueError: A tensor of a layer has another shape.
    """
    originals = {name: denoiser.get_submodule(name) for name in bits}
    shapes = {name: _shape(original) for name, original in originals.items()}
    has_bias = {name: original.bias is not None for name, original in originals.items()}
    for name, shape in shapes.items():
        layer = layer_from_tensors(name, shape, bits[name], tensors)
        if has_bias[name] != (layer.bias is not None):
            raise ValueError(f"layer {name} {'lacks its bias' if has_bias[name] else 'has a bias in the file alone'}")
        yield layer


def _shape(layer: nn.Module) -> tuple[int, ...]:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return tuple(layer.weight.shape)
