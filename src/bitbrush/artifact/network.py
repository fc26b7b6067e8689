"""Quantized text encoders and VAEs as an artifact holds them: read layer by layer, and never in floating point."""

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from bitbrush.artifact.building import building
from bitbrush.artifact.denoiser import CONFIG, WEIGHTS, quantized_layers, require_values
from bitbrush.artifact.documents import ArtifactError, parse, read_whole, require_schema
from bitbrush.artifact.local_paths import without_paths
from bitbrush.artifact.quantization_config import QUANTIZATION, StoredConfig
from bitbrush.artifact.schema import QuantizationEntry
from bitbrush.artifact.tensor_file import TensorFile
from bitbrush.artifact.tensors import LAYER_KEYS, TABLE_KEYS, layer_tensors, table_from_tensors, table_tensors
from bitbrush.network.empty import without_values
from bitbrush.network.layers import QuantizedLayer
from bitbrush.network.lazy_weights import HALF, state_readers
from bitbrush.network.narrow import lossless_type
from bitbrush.network.other_networks import TABLE_BITS, Embeddings, QuantizedNetwork
from bitbrush.runtime.choose import Choice
from bitbrush.runtime.interface import Execution
from bitbrush.runtime.lowered import lower_network
from bitbrush.session.allocator import return_freed_memory
from bitbrush.sources.model_names import MODEL_INDEX
from bitbrush.sources.networks import component_class

TRANSFORMERS_WEIGHTS = "model.safetensors"


def weights_name(kind: type) -> str:
    """Returns the name of the file with the weights of a network of that class."""
    return WEIGHTS if issubclass(kind, ModelMixin) else TRANSFORMERS_WEIGHTS


def network_class(root: Path, name: str) -> type:
    """Returns the class of a component of a verified artifact."""
    library, kind = parse(read_whole(root / MODEL_INDEX), root / MODEL_INDEX)[name]
    found = component_class(library, kind)
    assert found is not None, "require_fitting has checked the index"
    return found


def load_network(folder: Path, kind: Any, choice: Choice) -> nn.Module:
    """Loads a quantized network and lowers it with the selected runtime.

    Args:
        folder: Folder of the component.
        kind: Its class.
        choice: Runtime, type and memory mode.

    Returns:
        The network in evaluation mode, without gradients.

    Raises:
        ValueError: The folder's tensors do not match its configuration.
        KeyError: A tensor is missing.
    """
    return_freed_memory()
    network, layers, embeddings = read_network(folder, kind)
    lower_network(network, choice, layers, embeddings)
    return network.eval().requires_grad_(False)


def check_network(folder: Path, kind: Any) -> nn.Module:
    """Reads everything that :func:`load_network` reads, layer by layer, and returns the network without values."""
    network, layers, _ = read_network(folder, kind)
    for _layer in layers:
        pass
    return network.to("meta")


def read_network(folder: Path, kind: Any) -> tuple[nn.Module, Iterator[QuantizedLayer], Embeddings]:
    """Reads the tensors of a network that are not quantized, and its embedding tables.

    Args:
        folder: Folder of the component.
        kind: Its class.

    Returns:
        The network with these values, an iterator that reads the quantized layers lazily, and the tables.

    Raises:
        ValueError: The folder's tensors do not match its configuration, or hold NaN or infinity.
        KeyError: A tensor is missing.
    """
    network, entry = _empty_network(folder, kind)
    bits: dict[str, int] = entry["weight_bits"]
    tied: dict[str, str] = entry.get("tied_embeddings", {})
    names: list[str] = entry.get("embeddings", [])
    tensors = TensorFile(folder / weights_name(kind))
    quantized = {f"{name}.{key}" for name in bits for key in LAYER_KEYS}
    quantized |= {f"{name}.{key}" for name in names for key in TABLE_KEYS}
    rest = {name: _widened(tensors[name]) for name in tensors if name not in quantized}
    require_values(network, rest)
    missing, unexpected = network.load_state_dict(rest, strict=False, assign=True)
    replaced = {*bits, *names, *tied}
    lacking = [name for name in missing if name.rpartition(".")[0] not in replaced]
    if lacking or unexpected or not set(tied.values()) <= set(names):
        wrong = (lacking or unexpected or sorted(tied))[:3]
        raise ValueError(f"its tensors are not the configuration's: {', '.join(wrong)}")
    tables = {name: table_from_tensors(name, _table_shape(network, name), tensors) for name in names}
    for name in tied:
        _table_shape(network, name)
    return network, quantized_layers(network, bits, tensors), Embeddings(tables, tied)


def network_executions(folder: Path, kind: Any, choice: Choice) -> tuple[Execution, ...]:
    """Returns how the selected runtime would execute each quantized layer, without computing anything."""
    network, entry = _empty_network(folder, kind)
    layers = quantized_layers(network, entry["weight_bits"], TensorFile(folder / weights_name(kind)))
    return tuple(choice.runtime.execution(network.get_submodule(layer.name), layer) for layer in layers)


def network_tensors(network: nn.Module, quantized: QuantizedNetwork) -> dict[str, Tensor]:
    """Returns the tensors of a full-precision network as its file holds them after quantization."""
    names = {*(layer.name for layer in quantized.layers), *quantized.embeddings.tables, *quantized.embeddings.tied}
    replaced = {f"{name}.{key}" for name in names for key in ("weight", "bias")}
    rest = {key: read().clone() for key, read in state_readers(network).items() if key not in replaced}
    dtype = lossless_type(rest.values())
    tensors = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in rest.items()}
    for layer in quantized.layers:
        tensors |= layer_tensors(layer)
    for name, table in quantized.embeddings.tables.items():
        tensors |= table_tensors(name, table)
    return {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}


def network_config(network: Any, quantized: QuantizedNetwork) -> dict[str, Any]:
    """Returns a network's ``config.json`` with the quantization entry, without this machine's paths."""
    if isinstance(network, ModelMixin):
        config = json.loads(network.to_json_string())
    else:
        plain = copy.deepcopy(network.config)
        plain.architectures, plain.dtype = [type(network).__name__], torch.float32
        config = json.loads(plain.to_json_string())
    bits = {layer.name: layer.weight.qparams.bits for layer in quantized.layers}
    embeddings = quantized.embeddings
    entry = StoredConfig(bits, embeddings=list(embeddings.tables), tied_embeddings=dict(embeddings.tied))
    portable: dict[str, Any] = without_paths({**config, QUANTIZATION: entry.to_dict()})
    return portable


def packed_bytes(quantized: QuantizedNetwork) -> int:
    """Returns the bytes that the integers of a network take."""
    weights = [(layer.weight.w_q.numel(), layer.weight.qparams.bits) for layer in quantized.layers]
    weights += [(table.w_q.numel(), TABLE_BITS) for table in quantized.embeddings.tables.values()]
    return sum(-(-count * bits // 8) for count, bits in weights)


def _empty_network(folder: Path, kind: Any) -> tuple[nn.Module, Mapping[str, Any]]:
    """Builds a network with all parameters on the meta device; returns it and its quantization entry."""
    config = parse(read_whole(folder / CONFIG), folder / CONFIG)
    entry = config.pop(QUANTIZATION)
    require_schema(entry, QuantizationEntry, folder / CONFIG)
    with building(folder), without_values():
        network: nn.Module = (
            kind.from_config(config) if issubclass(kind, ModelMixin) else kind(kind.config_class.from_dict(config))
        )
    return network, entry


def _widened(tensor: Tensor) -> Tensor:
    """Returns half precision, in which a tensor is stored where that loses nothing, in float32."""
    return tensor.float() if tensor.dtype in HALF else tensor


def _table_shape(network: nn.Module, name: str) -> tuple[int, int]:
    embedding = network.get_submodule(name)
    if not isinstance(embedding, nn.Embedding):
        raise ArtifactError(f"a {type(embedding).__name__} is listed as an embedding table; quantize again")
    return embedding.num_embeddings, embedding.embedding_dim
