"""Attention by the kernel of ``attention.cpp``, on CPUs where it is the fastest."""

import ctypes
from ctypes import c_int, c_int64, c_void_p

import torch
from torch import Tensor

from bitbrush.runtime.attention import AttentionKernel, torch_attention


def native_attention(library: ctypes.CDLL) -> AttentionKernel:
    """Returns the native kernel for bfloat16 tokens with heads of even width; it calls torch's operator for others.

    Returns torch's operator itself on CPUs without AVX512-BF16, and on those with matrix units (AMX): torch uses AMX
    and the kernel does not.
    """
    if not library.bitbrush_has_attention() or torch.cpu._is_amx_tile_supported():
        return torch_attention
    function = library.bitbrush_attention
    function.argtypes, function.restype = [*(c_void_p,) * 4, *(c_int64,) * 5, c_int], None

    def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        n, queries, channels = query.shape
        width = channels // heads
        if key.shape != value.shape or (key.shape[0], key.shape[2]) != (n, channels) or channels % heads:
            raise ValueError(f"attention of {heads} heads got {query.shape}, {key.shape} and {value.shape}")
        if query.dtype != torch.bfloat16 or width % 2:
            return torch_attention(query, key, value, heads)
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        out = torch.empty_like(query)
        pointers = query.data_ptr(), key.data_ptr(), value.data_ptr(), out.data_ptr()
        function(*pointers, n, queries, key.shape[1], heads, width, torch.get_num_threads())
        return out

    return attention
