"""Safetensors file read tensor by tensor."""

import math
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from bitbrush.artifact.documents import MAX_BYTES, ArtifactError, opening, require_schema

DTYPES = {
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
_Size = Annotated[int, Meta(ge=0, lt=2**62)]


class Entry(msgspec.Struct, forbid_unknown_fields=True):
    """Entry of a tensor in the header."""

    dtype: str
    shape: Annotated[list[_Size], Meta(max_length=16)]
    data_offsets: tuple[_Size, _Size]


def header_bytes(path: Path) -> int:
    """Returns the length of a file's header, at most the file's own."""
    with opening(path) as file:
        size = os.fstat(file.fileno()).st_size
        return min(size, int.from_bytes(file.read(_LENGTH_BYTES), "little"))


@lru_cache(maxsize=8)
def _header(path: Path, identity: tuple[int, ...]) -> tuple[Mapping[str, Entry], int]:
    """Reads and checks a header; loading needs that of the denoiser twice. ``identity`` changes with the file.

    Returns:
        The entries by name, and the position of the first tensor.
    """
    size = identity[2]
    with opening(path) as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > min(size, MAX_BYTES):
            raise ArtifactError(f"{path} is no safetensors file: its header has {length} of {size} bytes")
        content = file.read(length)
    try:  # a name that occurs twice leaves a gap, or repeats itself
        header = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is no safetensors file: {error}") from error
    if isinstance(header, dict):
        header.pop("__metadata__", None)
    entries: dict[str, Entry] = require_schema(header, dict[str, Entry], f"{path}, its header,")
    _require_gapless(path, entries, size - _LENGTH_BYTES - length)
    return MappingProxyType(entries), _LENGTH_BYTES + length


def _require_gapless(path: Path, entries: Mapping[str, Entry], size: int) -> None:
    """Checks that the tensors fill ``size`` bytes in some order, so that none overlaps another or exceeds the file."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, following = entry.data_offsets
        dtype = DTYPES.get(entry.dtype)
        if begin != end or following < begin:
            raise ArtifactError(f"{path}: tensor {name} overlaps another or leaves a gap; fetch it again")
        if dtype is not None and math.prod(entry.shape) * dtype.itemsize != following - begin:
            raise ArtifactError(f"{path}: tensor {name} has {following - begin} bytes for {entry.shape}")
        end = following
    if end != size:
        ending = "ends before its tensors do" if end > size else "has bytes after its tensors"
        raise ArtifactError(f"{path} {ending}; fetch it again")


class TensorFile(Mapping[str, Tensor]):
    """Mapping of a file's tensors by name; each access reads the tensor into newly allocated memory.

    The safetensors package maps files into memory, and mapped pages count towards the process. The packed weights would
    be in memory twice while they are laid out for the kernels.
    """

    def __init__(self, path: Path) -> None:
        """Reads and checks the header.

        Raises:
            ArtifactError: The file has no safetensors header, or its tensors overlap, leave gaps or exceed the file.
        """
        self._path = path
        with ExitStack() as stack:
            self._file = stack.enter_context(opening(path))
            status = os.fstat(self._file.fileno())
            identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            self.entries, self._begin = _header(path, identity)
            weakref.finalize(self, stack.pop_all().close)  # opening it for each tensor takes longer than reading

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise ArtifactError(f"{self._path}: tensor {name} has dtype {entry.dtype}; known are {', '.join(DTYPES)}")
        begin, end = entry.data_offsets
        data = torch.empty(end - begin, dtype=torch.uint8)
        self._file.seek(self._begin + begin)
        if self._file.readinto(data.numpy().data) != end - begin:
            raise ArtifactError(f"{self._path} ends before the tensor {name} does")
        return data.view(DTYPES[entry.dtype]).view(entry.shape)

    def stored_bytes(self, prefix: str) -> int:
        """Returns the stored size of all tensors whose names start with ``prefix``, without reading them."""
        offsets = [entry.data_offsets for name, entry in self.entries.items() if name.startswith(prefix)]
        return sum(end - begin for begin, end in offsets)

    def __contains__(self, name: object) -> bool:
        return name in self.entries  # without reading the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
