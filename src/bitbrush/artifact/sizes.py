"""Sizes of a network: packed, in its checkpoint, in float32; the single source for pages, cards and commands."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import nn

from bitbrush.artifact.network import network_tensors
from bitbrush.artifact.tensor_file import TensorFile
from bitbrush.artifact.tensors import other_tensors
from bitbrush.network.families import DENOISERS
from bitbrush.network.narrow import float32_bytes, narrow_bytes, saving_bytes
from bitbrush.quantization.quantize import Quantization
from bitbrush.sources.checkpoint_type import variant_files
from bitbrush.sources.model_names import MODEL_INDEX, SINGLE_FILE
from bitbrush.sources.models import ModelOptions
from bitbrush.sources.single_file import DENOISER
from bitbrush.zoo import model_path

MIB = 2**20


@dataclass(frozen=True)
class DenoiserSizes:
    """Sizes of the weights of a denoiser, or of another quantized network, in bytes.

    Attributes:
        packed: Size of its file in the artifact.
        float32: Size of all parameters in float32, the type of full-precision computation.
        checkpoint: Size of its files in the original checkpoint; None in artifacts that do not record it.
    """

    packed: int
    float32: int
    checkpoint: int | None

    @property
    def text(self) -> str:
        """Text such as ``5.66 MiB, 0.27 of its checkpoint's 20.75 MiB (41.43 MiB in float32)``."""
        packed, float32 = f"{self.packed / MIB:.2f} MiB", f"{self.float32 / MIB:.2f} MiB"
        if self.checkpoint is None:
            return f"{packed}, {self.packed / self.float32:.2f} of {float32} in float32"
        share = f"{self.packed / self.checkpoint:.2f} of its checkpoint's {self.checkpoint / MIB:.2f} MiB"
        return f"{packed}, {share} ({float32} in float32)"


def denoiser_sizes(manifest: Mapping[str, Any]) -> DenoiserSizes:
    """Returns the sizes that an artifact's manifest records."""
    return _sizes(manifest["denoiser"])


def network_sizes(manifest: Mapping[str, Any]) -> dict[str, DenoiserSizes]:
    """Returns the recorded sizes of the quantized networks beside the denoiser, by name."""
    return {name: _sizes(entry) for name, entry in manifest.get("networks", {}).items()}


def _sizes(entry: Mapping[str, Any]) -> DenoiserSizes:
    return DenoiserSizes(entry["bytes"], entry["full_precision_bytes"], entry.get("checkpoint_bytes"))


def bytes_to_save(quantization: Quantization) -> int:
    """Returns the disk space that saving an artifact takes at most."""
    component, pipe, layers = quantization.family.component, quantization.source, quantization.outcome.layers
    quantized = (component, *quantization.networks)
    others = [part for name, part in pipe.components.items() if name not in quantized and isinstance(part, nn.Module)]
    rest = other_tensors(getattr(pipe, component), {layer.name: layer for layer in layers})
    integers = sum(layer.weight.w_q.numel() * layer.weight.qparams.bits // 8 for layer in layers)
    sizes = [(float32_bytes(part), narrow_bytes(part)) for part in others]
    beside = (network_tensors(getattr(pipe, name), one).values() for name, one in quantization.networks.items())
    packed = sum(tensor.nbytes for tensors in beside for tensor in tensors)
    return saving_bytes(sizes, packed + integers + sum(tensor.nbytes for tensor in rest.values()))


def checkpoint_bytes(model: str | os.PathLike[str], options: ModelOptions, component: str, network: nn.Module) -> int:
    """Returns the size of a network's files in its checkpoint, without network access.

    A single-file checkpoint counts the denoiser's tensors. If ``model`` is not available locally, or in a single file
    with another network, the result is the size of ``network`` in the narrowest lossless type.

    Args:
        model: Hub id, bundled name or path of the full-precision model.
        options: Loading options of that model.
        component: Name of the network in the pipeline.
        network: The network, for the fallback.

    Returns:
        Size in bytes.
    """
    source = local_model(os.fspath(model), options)
    found = 0 if source is None else _stored_bytes(source, component, options.variant)
    return found or narrow_bytes(network)


def _stored_bytes(source: Path, component: str, variant: str | None) -> int:
    if source.suffix == SINGLE_FILE:
        return TensorFile(source).stored_bytes(DENOISER) if component in DENOISERS else 0
    return sum(path.stat().st_size for path in variant_files(source / component, variant))


def local_model(model: str, options: ModelOptions) -> Path | None:
    """Returns the bundled model, the local folder or file, or the hub's snapshot in the cache; None if none exists."""
    path = model_path(model) or Path(model)
    if path.exists():
        return path
    try:
        index = try_to_load_from_cache(model, MODEL_INDEX, revision=options.revision)
    except HFValidationError:  # not a valid hub id
        return None
    return Path(index).parent if isinstance(index, str) else None
