"""Networks that are not quantized, stored as narrowly as loses nothing."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bitbrush.network.held import HALF, held_weights, state_readers

INDEX = "*.safetensors.index.json"


def lossless_type(tensors: Iterable[Tensor]) -> torch.dtype:
    """Half precision, or else bfloat16, if every float32 number among them is one of its own; float32 otherwise.

    So it is with networks of a checkpoint in that type, whatever they were loaded in. Looks no further than needed.
    """
    left = list(HALF)
    for tensor in tensors:
        if tensor.dtype == torch.float32:
            left = [dtype for dtype in left if torch.equal(tensor.to(dtype).float(), tensor)]
        if not left:
            break
    return left[0] if left else torch.float32


def narrow_bytes(network: nn.Module) -> int:
    """What :func:`narrow_files` leaves of the network's tensors."""
    dtype = lossless_type(read() for read in state_readers(network).values())
    tensors = network.state_dict().values()
    floats = sum(tensor.numel() for tensor in tensors if tensor.dtype == torch.float32)
    others = sum(int(tensor.nbytes) for tensor in tensors if tensor.dtype != torch.float32)
    size: int = dtype.itemsize * (held_weights(network) + floats) + others
    return size


def narrow_files(folder: Path) -> None:
    """Writes a saved network's float32 tensors anew in their lossless type; its configuration stays as it is.

    What loads it in float32 has the same numbers as before.
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
    fresh = path.with_suffix(".part")  # what was read may still be the file, mapped into memory
    save_file(tensors, fresh, metadata={"format": "pt"})
    fresh.replace(path)
    return sum(int(tensor.nbytes) for tensor in tensors.values())


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype == torch.float32 else tensor


def _read(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - no dictionary
            yield name, file.get_tensor(name)
