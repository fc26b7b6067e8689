"""Expansion of 4-bit weights by the kernel of ``nibbles.cpp``."""

import ctypes
from collections.abc import Callable
from ctypes import c_int, c_int64, c_void_p

import torch
from torch import Tensor

from bitbrush.runtime.native.pointers import require_layout
from bitbrush.runtime.nibbles import Nibbles


def native_expand(library: ctypes.CDLL) -> Callable[[Nibbles, Tensor], None]:
    """Returns :func:`bitbrush.runtime.nibbles.from_nibbles` as a native kernel of one pass."""
    function = library.bitbrush_expand_nibbles
    function.argtypes, function.restype = [c_void_p, c_void_p, *(c_int64,) * 3, c_void_p, c_int], None

    def expand(nibbles: Nibbles, out: Tensor) -> None:
        packed, zero_point, rest, rows = nibbles
        blocks, width = zero_point.shape
        require_layout(packed, torch.uint8, (blocks, (rows + 1) // 2, width))
        require_layout(zero_point, torch.uint8, (blocks, width))
        require_layout(out, torch.uint8, (nibbles.nbytes,))
        pointers = packed.data_ptr(), zero_point.data_ptr()
        function(*pointers, blocks, rows, width, out.data_ptr(), torch.get_num_threads())
        if len(rest):
            out[-len(rest) :] = rest

    return expand
