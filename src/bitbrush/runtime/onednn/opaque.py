"""Bytes of oneDNN's packed weights, which torch keeps in opaque tensors.

torch's own compiler stores packed weights in a file and wraps them again where it has loaded them, by the functions
that are called here.
"""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor

from bitbrush.session.offload import CPU


@dataclass(frozen=True)
class Layout:
    """Shape and oneDNN's serialized description of packed weights, and the bytes that they take."""

    shape: tuple[int, ...]
    descriptor: bytes
    nbytes: int

    @classmethod
    def of(cls, packed: Tensor) -> Self:
        """Describes packed weights."""
        descriptor: Tensor = torch.ops.mkldnn._get_mkldnn_serialized_md(packed)
        nbytes: int = torch.ops.mkldnn._nbytes(packed)
        return cls(tuple(packed.shape), bytes(descriptor.tolist()), nbytes)


def opaque_bytes(packed: Tensor) -> Tensor:
    """Views packed weights as bytes (n,) int8; valid as long as ``packed`` exists."""
    memory = (ctypes.c_int8 * torch.ops.mkldnn._nbytes(packed)).from_address(torch.ops.mkldnn.data_ptr(packed))
    return torch.frombuffer(memory, dtype=torch.int8)


def wrap(memory: Tensor, layout: Layout) -> Tensor:
    """Makes packed weights of the bytes in ``memory``, which must outlive them.

    Args:
        memory: Contiguous bytes, at least ``layout.nbytes``.
        layout: Layout of the bytes.

    Returns:
        An opaque int8 tensor for oneDNN's operators.

    Raises:
        RuntimeError: torch rejects the layout.
        ValueError: The memory is too small.
    """
    if memory.nbytes < layout.nbytes:
        raise ValueError(f"packed weights take {layout.nbytes} bytes, and the memory has {memory.nbytes}")
    library, dimensions = _library(), len(layout.shape)
    sizes, strides = (c_int64 * dimensions)(*layout.shape), (c_int64 * dimensions)(*(1,) * dimensions)
    handle = c_void_p()
    error = library.aoti_torch_create_tensor_from_blob_v2(
        *(memory.data_ptr(), dimensions, sizes, strides, 0),
        *(library.aoti_torch_dtype_int8(), library.aoti_torch_device_type_cpu(), -1, byref(handle)),
        *(library.aoti_torch_layout__mkldnn(), layout.descriptor, len(layout.descriptor)),
    )
    if error:
        raise RuntimeError(f"torch cannot wrap packed weights of shape {layout.shape}")
    (packed,) = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs([_capsule()(handle, None, None)])
    return packed


@cache
def is_accessible(pack: Any) -> bool:
    """Tells whether the bytes of packed weights can be read and wrapped with this build of torch.

    Args:
        pack: Function that packs the signed weights (C_out, C_in) of a linear layer.
    """
    packed = pack(torch.ones(16, 16, dtype=torch.int8, device=CPU))
    try:
        layout, memory = Layout.of(packed), opaque_bytes(packed).clone()
        return torch.equal(opaque_bytes(wrap(memory, layout)), memory)
    except (AttributeError, NotImplementedError, RuntimeError):  # of other versions, builds and processors
        return False


@cache
def _capsule() -> Any:
    """Returns Python's ``PyCapsule_New``, as an object of its own: the attribute of ctypes is everybody's."""
    prototype = ctypes.PYFUNCTYPE(ctypes.py_object, c_void_p, c_char_p, c_void_p)
    return prototype(("PyCapsule_New", ctypes.pythonapi))


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(torch._C.__file__)  # finds the symbols of the libraries that it is linked to
    function = library.aoti_torch_create_tensor_from_blob_v2
    function.argtypes = [
        *(c_void_p, c_int64, POINTER(c_int64), POINTER(c_int64), c_int64),
        *(c_int32, c_int32, c_int32, POINTER(c_void_p), c_int32, c_char_p, c_int64),
    ]
    return library
