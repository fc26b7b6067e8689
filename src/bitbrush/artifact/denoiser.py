"""Quantized denoiser read from its folder, layer by layer."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
from torch import Tensor, nn

from bitbrush.artifact.building import building
from bitbrush.artifact.documents import parse, read_whole, require_schema
from bitbrush.artifact.schema import QuantizationEntry
from bitbrush.artifact.tensor_file import TensorFile
from bitbrush.artifact.tensors import LAYER_KEYS, layer_from_tensors
from bitbrush.network.empty import without_values
from bitbrush.network.layers import QuantizedLayer
from bitbrush.network.low_rank import branch_
from bitbrush.network.skip_inputs import split_
from bitbrush.runtime.choose import Choice
from bitbrush.runtime.interface import Execution
from bitbrush.runtime.lowered import lower
from bitbrush.session.allocator import return_freed_memory
from bitbrush.session.progress import Progress, silent
from bitbrush.sources.networks import unusable_values

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
    denoiser, layers = read_denoiser(folder)
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
    denoiser, layers = read_denoiser(folder)
    for _ in layers:
        pass
    return denoiser.to("meta")


def read_denoiser(folder: Path) -> tuple[nn.Module, Iterator[QuantizedLayer]]:
    """Reads a denoiser's tensors that are not quantized.

    Args:
        folder: Folder of the denoiser within the artifact.

    Returns:
        The denoiser with these values, and an iterator that reads the quantized layers lazily.

    Raises:
        ValueError: The folder's tensors do not match its configuration, or hold NaN or infinity.
    """
    denoiser, quantization = _empty_denoiser(folder)
    bits: dict[str, int] = quantization["weight_bits"]
    tensors = TensorFile(folder / WEIGHTS)
    _require_first_tokens(bits, quantization.get("first_tokens", ()), tensors)
    quantized = {f"{name}.{key}" for name in bits for key in LAYER_KEYS}
    rest = {name: tensors[name] for name in tensors if name not in quantized}
    require_values(denoiser, rest)
    missing, unexpected = denoiser.load_state_dict(rest, strict=False, assign=True)
    lacking = [name for name in missing if name.rpartition(".")[0] not in bits]
    if lacking or unexpected:
        raise ValueError(f"its tensors are not the configuration's: {', '.join((lacking or unexpected)[:3])}")
    return denoiser, quantized_layers(denoiser, bits, tensors)


def require_values(denoiser: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Checks dtypes and values of tensors that are not quantized.

    Raises:
        ValueError: A tensor has another dtype than the denoiser's, or values that are not finite or too large.
    """
    for name, expected in denoiser.state_dict().items():
        if name in tensors and tensors[name].dtype != expected.dtype:
            raise ValueError(f"tensor {name} is of {tensors[name].dtype}; the denoiser's is of {expected.dtype}")
    if unusable := unusable_values(tensors):
        raise ValueError(f"the denoiser {unusable}")


def _require_first_tokens(bits: Mapping[str, int], listed: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    held = {name for name in bits if f"{name}.first_input" in tensors}
    if unlike := sorted(held ^ set(listed)):
        raise ValueError(f"first_tokens of its configuration is not what its tensors have: {unlike[0]}")


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


def _empty_denoiser(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Builds a denoiser with an artifact's layers and all parameters on the meta device.

    Returns:
        The denoiser, and the quantization configuration from its ``config.json``.
    """
    config = parse(read_whole(folder / CONFIG), folder / CONFIG)
    packed = config.pop("quantization_config")
    require_uncorrected(packed)
    require_schema(packed, QuantizationEntry, folder / CONFIG)
    with building(folder), without_values():
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
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise ValueError(f"a {type(layer).__name__} is listed as quantized; Conv2d and Linear are")
    return tuple(layer.weight.shape)
