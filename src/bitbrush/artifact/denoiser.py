"""A quantized denoiser from its folder, layer by layer."""

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
    """The denoiser of an artifact's ``folder``, lowered by the chosen runtime.

    Raises ValueError or KeyError if the folder's tensors are not those of its configuration.
    """
    return_freed_memory()  # before anything large is made: the heap would keep its size
    denoiser, layers = _read_denoiser(folder)
    lower(denoiser, choice, layers)
    return denoiser.eval().requires_grad_(False)


def check_denoiser(folder: Path) -> nn.Module:
    """Reads all that :func:`load_denoiser` would, layer by layer, and keeps nothing: the denoiser has no values.

    Raises as :func:`load_denoiser`.
    """
    denoiser, layers = _read_denoiser(folder)
    for _ in layers:
        pass
    tensors = TensorFile(folder / WEIGHTS)
    if bad := [name for name in tensors if not is_finite(tensors[name])]:
        raise ValueError(f"the denoiser holds NaN or infinity in {', '.join(bad[:KEYS_SHOWN])}")
    return denoiser.to("meta")


def _read_denoiser(folder: Path) -> tuple[nn.Module, Iterator[QuantizedLayer]]:
    """The denoiser with the values of what is not quantized, and its quantized layers, read as they are taken."""
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
    """How the chosen runtime would compute each quantized layer of an artifact's ``folder``, without computing."""
    denoiser, quantization = _empty_denoiser(folder)
    bits: dict[str, int] = quantization["weight_bits"]
    found = []
    with progress("inspecting", len(bits)) as advance:
        for layer in quantized_layers(denoiser, bits, TensorFile(folder / WEIGHTS)):
            found.append(choice.runtime.execution(denoiser.get_submodule(layer.name), layer))
            advance()
    return tuple(found)


def denoiser_of(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """One with an artifact's layers and the values its class starts from; what its configuration tells of them."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    packed = config.pop("quantization_config")
    require_uncorrected(packed)
    denoiser: nn.Module = getattr(diffusers, config["_class_name"]).from_config(config)
    split_(denoiser, packed.get("split_skips", {}))
    branch_(denoiser, packed.get("low_ranks", {}))
    return denoiser, packed


def require_uncorrected(packed: Mapping[str, Any]) -> None:
    """Raises ValueError if the output was to be corrected, as earlier versions did with ``output_means = correct``."""
    if packed.get("correction") is not None:
        raise ValueError("its output is corrected (output_means), which this bitbrush has no more; quantize again")


def _empty_denoiser(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """:func:`denoiser_of` without values: all parameters are on the device meta."""
    with init_empty_weights(include_buffers=False):
        return denoiser_of(folder)


def quantized_layers(
    denoiser: nn.Module, bits: Mapping[str, int], tensors: Mapping[str, Tensor]
) -> Iterator[QuantizedLayer]:
    """The layers of an artifact's denoiser, each read when it is taken.

    Raises KeyError or ValueError for one whose tensors are missing or of other shapes.
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
