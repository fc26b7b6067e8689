"""Lossless narrow storage of networks that are not quantized."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bitbrush.network.narrow import lossless_type
from bitbrush.session.disk import writing_whole

INDEX = "*.safetensors.index.json"


def narrow_files(folder: Path) -> None:
    """Rewrites a saved network's float32 tensors in their lossless type and keeps its configuration.

    Loading in float32 restores the same numbers.
    """
    files = sorted(folder.glob("*.safetensors"))
    dtype = lossless_type(tensor for path in files for _, tensor in _read(path))
    if dtype == torch.float32:
        return
    sizes = [_narrow_file(path, dtype) for path in files]
    for path in folder.glob(INDEX):
        index = json.loads(path.read_text(encoding="utf-8"))
        index["metadata"]["total_size"] = sum(sizes)
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _narrow_file(path: Path, dtype: torch.dtype) -> int:
    tensors = {name: _narrowed(tensor, dtype) for name, tensor in _read(path)}
    with writing_whole(path) as fresh:  # the tensors may still be memory-mapped from the old file
        save_file(tensors, fresh, metadata={"format": "pt"})
    return sum(int(tensor.nbytes) for tensor in tensors.values())


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype == torch.float32 else tensor


def _read(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - safe_open is not a dictionary
            yield name, file.get_tensor(name)
