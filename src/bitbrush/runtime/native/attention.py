"""Attention by the kernel of ``attention.cpp``, where the processor is one that it is the fastest on."""

import ctypes
from ctypes import c_int, c_int64, c_void_p

import torch
from torch import Tensor

from bitbrush.runtime.attention import AttentionKernel, torch_attention


def native_attention(library: ctypes.CDLL) -> AttentionKernel:
    """The kernel for bfloat16 tokens whose heads are of even width, torch's operator for others.

    Everything is torch's on processors without AVX512-BF16, and on those with matrix units (AMX), which torch uses and
    the kernel does not.
    """
    if not library.bitbrush_has_attention() or torch.cpu._is_amx_tile_supported():
        return torch_attention
    function = library.bitbrush_attention
    function.argtypes, function.restype = [*(c_void_p,) * 4, *(c_int64,) * 5, c_int], None

    def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        n, queries, channels = query.shape
        width = channels // heads
        if query.dtype != torch.bfloat16 or width % 2:
            return torch_attention(query, key, value, heads)
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        out = torch.empty_like(query)
        pointers = query.data_ptr(), key.data_ptr(), value.data_ptr(), out.data_ptr()
        function(*pointers, n, queries, key.shape[1], heads, width, torch.get_num_threads())
        return out

    return attention
