"""Parts of an artifact as they are written: components, denoiser, manifest and model card."""

import importlib.metadata
import json
import platform
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from bitbrush.artifact.card import model_card
from bitbrush.artifact.denoiser import CONFIG, WEIGHTS
from bitbrush.artifact.folder import CARD, MANIFEST, file_digests
from bitbrush.artifact.local_paths import remove_local_paths, without_paths
from bitbrush.artifact.manifest import manifest_digest
from bitbrush.artifact.narrow import narrow_files
from bitbrush.artifact.quantization_config import QUANTIZATION, StoredConfig
from bitbrush.artifact.stored import StoredDenoiser
from bitbrush.artifact.tensors import layer_tensors, other_tensors
from bitbrush.artifact.vocabulary import save_vocabulary
from bitbrush.network.layers import QuantizedLayer
from bitbrush.network.lazy_weights import materialized
from bitbrush.network.low_rank import branch_ranks
from bitbrush.network.skip_inputs import split_begins
from bitbrush.sources.model_names import MODEL_INDEX
from bitbrush.sources.plain_loading import plain
from bitbrush.sources.savable import saved_class

LIBRARIES = "bitbrush", "torch", "diffusers", "transformers"


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries, for the manifest."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def write_components(pipe: DiffusionPipeline, quantized: Collection[str], root: Path) -> None:
    """Writes ``model_index.json`` and every component that is not ``quantized`` into an existing folder."""
    with plain():
        _write_index(pipe, root)
        for name, part in pipe.components.items():
            if name not in quantized and hasattr(part, "save_pretrained"):
                whole: Any = materialized(part) if isinstance(part, nn.Module) else part
                whole.save_pretrained(root / name)
                save_vocabulary(part, root / name)
                narrow_files(root / name)
    remove_local_paths(root)


def write_denoiser(stored: StoredDenoiser, folder: Path, weights: str = WEIGHTS) -> None:
    """Writes configuration and packed weights of a denoiser, or of another quantized network."""
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(stored.config, indent=1) + "\n", encoding="utf-8")
    stored.write(folder / weights)


def write_manifest(root: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the manifest of a folder that is otherwise complete, and returns it with the hashes of the files."""
    whole = {**manifest, "files": file_digests(root)}
    (root / MANIFEST).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    mode = (root / MANIFEST).stat().st_mode
    for name in whole["files"]:
        (root / name).chmod(mode)  # safetensors creates files that only their owner can read
    return whole


def write_card(root: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the model card of an artifact."""
    (root / CARD).write_text(model_card(dict(manifest), manifest_digest(root)), encoding="utf-8")


def packed_tensors(denoiser: nn.Module, layers: Mapping[str, QuantizedLayer]) -> dict[str, Tensor]:
    """Returns the tensors of a denoiser as its file holds them.

    Args:
        denoiser: Denoiser before lowering.
        layers: Quantized layers by name.
    """
    tensors = other_tensors(denoiser, layers)
    for layer in layers.values():
        tensors |= layer_tensors(layer)
    return tensors


def stored_config(denoiser: Any, layers: Mapping[str, QuantizedLayer]) -> dict[str, Any]:
    """Returns the denoiser's ``config.json`` with the quantization entry, without this machine's paths."""
    bits = {name: one.weight.qparams.bits for name, one in layers.items()}
    known = [name for name, one in layers.items() if one.first is not None]
    entry = StoredConfig(bits, split_begins(denoiser), branch_ranks(denoiser), known)
    config = {**json.loads(denoiser.to_json_string()), QUANTIZATION: entry.to_dict()}
    portable: dict[str, Any] = without_paths(config)
    return portable


def _write_index(pipe: DiffusionPipeline, root: Path) -> None:
    """Writes the pipeline's ``model_index.json`` with a class that diffusers knows."""
    pipe.save_config(root)
    known = saved_class(pipe)
    if known is not type(pipe):
        index = json.loads((root / MODEL_INDEX).read_text(encoding="utf-8"))
        index["_class_name"] = known.__name__
        (root / MODEL_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        own = type(pipe).__name__
        warnings.warn(
            f"{own} is no class of diffusers: the artifact loads as a {known.__name__}, whose components "
            f"{own}(**bitbrush.load(DIR).components) takes over",
            stacklevel=5,
        )
