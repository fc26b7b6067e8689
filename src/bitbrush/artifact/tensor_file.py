"""Safetensors file read tensor by tensor."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LENGTH_BYTES = 8


class TensorFile(Mapping[str, Tensor]):
    """Mapping of a file's tensors by name; each access reads the tensor into newly allocated memory.

    The safetensors package maps files into memory, and mapped pages count towards the process. The packed weights would
    be in memory twice while they are laid out for the kernels.
    """

    def __init__(self, path: Path) -> None:
        """Reads the header.

        Raises:
            ValueError: The file has no safetensors header.
        """
        self._path = path
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            try:
                header = json.loads(file.read(length))
            except (json.JSONDecodeError, UnicodeDecodeError, OverflowError, MemoryError) as error:
                raise ValueError(f"{path} is no safetensors file: {error}") from error
        self._begin = _LENGTH_BYTES + length
        self._entries = {name: entry for name, entry in header.items() if name != "__metadata__"}

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        begin, end = entry["data_offsets"]
        data = torch.empty(end - begin, dtype=torch.uint8)
        with self._path.open("rb") as file:
            file.seek(self._begin + begin)
            if file.readinto(data.numpy().data) != end - begin:
                raise ValueError(f"{self._path} ends before the tensor {name} does")
        dtype = _DTYPES[entry["dtype"]]
        assert end - begin == math.prod(entry["shape"]) * dtype.itemsize
        return data.view(dtype).view(entry["shape"])

    def stored_bytes(self, prefix: str) -> int:
        """Returns the stored size of all tensors whose names start with ``prefix``, without reading them."""
        offsets = [entry["data_offsets"] for name, entry in self._entries.items() if name.startswith(prefix)]
        return sum(end - begin for begin, end in offsets)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
