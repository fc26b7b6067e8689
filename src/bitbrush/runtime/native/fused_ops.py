"""Fused operations by the kernels of ``fused_ops.cpp``."""

import ctypes
import functools
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int32, c_int64, c_void_p
from typing import Any, Self

import torch
from torch import Tensor, nn

from bitbrush.numerics.affine import QParams, reciprocal
from bitbrush.runtime.fused_ops import ALL, BYTE, Bytes
from bitbrush.runtime.native.pointers import require_layout
from bitbrush.session.offload import CPU

_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}


class _QParams(Structure):
    _fields_ = (("inverse_scale", c_float), ("zero_point", c_int32), ("qmax", c_int32))


class _Bytes(Structure):
    _fields_ = (("high", c_void_p), ("low", c_void_p), ("pad", c_int64))


_TAIL = (POINTER(_QParams), POINTER(_Bytes), c_int)
_ARGUMENTS: dict[str, list[Any]] = {
    "quantize": [c_void_p, *(c_int64,) * 5, *_TAIL],
    "group_norm": [c_void_p, *(c_int64,) * 7, c_float, *(c_void_p,) * 3, c_int, *_TAIL],
    "layer_norm": [c_void_p, c_int64, c_int64, c_float, c_void_p, c_void_p, *_TAIL],
    "geglu": [c_void_p, c_int64, c_int64, *_TAIL],
}


class NativeFusedOps:
    """Fused operations in C++, one pass over memory each; GroupNorm's statistics take a second.

    Inputs are float32 or bfloat16. Results equal those of :class:`TorchFusedOps` up to float32 rounding before
    quantization. Sums have a fixed order: neither the thread count nor the batch size changes a result.
    """

    name = "native kernels"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions = {}
        for operation, arguments in _ARGUMENTS.items():
            for dtype, suffix in _SUFFIX.items():
                function = library[f"bitbrush_{operation}_{suffix}"]
                function.argtypes, function.restype = arguments, None
                self._functions[operation, dtype] = function

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self  # library functions cannot be copied, and there is no other state

    def quantize(self, x: Tensor, qparams: QParams, *, padding: int = 0, upsample: int = 1) -> Bytes:
        """Quantizes an image or tokens, see :meth:`FusedOps.quantize`."""
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
            n, c, h, w = x.shape
            out = _Out(qparams, (n, c, h * upsample, w * upsample), padding)
        else:
            x = x.contiguous()
            c = x.shape[-1]
            n, h, w = 1, 1, x.numel() // max(c, 1)
            out = _Out(qparams, x.shape, 0)
        self._functions["quantize", x.dtype](x.data_ptr(), n, h, w, c, upsample, *out.arguments)
        return out.bytes

    def group_norm(
        self,
        x: Tensor,
        norm: nn.GroupNorm,
        qparams: QParams,
        *,
        padding: int = 0,
        silu: bool = False,
        add: Tensor | None = None,
        channels: slice = ALL,
    ) -> Bytes:
        """Normalizes groups of channels and quantizes, see :meth:`FusedOps.group_norm`."""
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
            n, c, h, w = x.shape
        else:
            x = x.contiguous()
            n, w, c = x.shape
            h = 1
        first, last, _ = channels.indices(c)
        out = _Out(qparams, (n, last - first, h, w) if x.dim() == 4 else (n, w, last - first), padding)
        gamma, beta = norm.weight.float().contiguous(), norm.bias.float().contiguous()
        add = None if add is None else add.float().expand(n, c).contiguous()
        require_layout(gamma, torch.float32, (c,))
        require_layout(beta, torch.float32, (c,))
        pointers = gamma.data_ptr(), beta.data_ptr(), None if add is None else add.data_ptr()
        sizes = n, h, w, c, norm.num_groups, first, last - first
        self._functions["group_norm", x.dtype](x.data_ptr(), *sizes, norm.eps, *pointers, silu, *out.arguments)
        return out.bytes

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm, qparams: QParams) -> Bytes:
        """Normalizes over the channels and quantizes, see :meth:`FusedOps.layer_norm`."""
        x = x.contiguous()
        c = x.shape[-1]
        out = _Out(qparams, x.shape, 0)
        gamma, beta = norm.weight.float().contiguous(), norm.bias.float().contiguous()
        require_layout(gamma, torch.float32, (c,))
        require_layout(beta, torch.float32, (c,))
        pointers = gamma.data_ptr(), beta.data_ptr()
        self._functions["layer_norm", x.dtype](x.data_ptr(), x.numel() // c, c, norm.eps, *pointers, *out.arguments)
        return out.bytes

    def geglu(self, x: Tensor, qparams: QParams) -> Bytes:
        """Gates one half of the channels by the other and quantizes, see :meth:`FusedOps.geglu`."""
        x = x.contiguous()
        c = x.shape[-1] // 2
        out = _Out(qparams, (*x.shape[:-1], c), 0)
        self._functions["geglu", x.dtype](x.data_ptr(), x.numel() // (2 * c), c, *out.arguments)
        return out.bytes


class _Out:
    """Output bytes of a shape, padded if it is an image, and the trailing arguments of every kernel."""

    def __init__(self, qparams: QParams, shape: torch.Size | tuple[int, ...], padding: int) -> None:
        high = _empty(shape, padding)
        low = _empty(shape, padding) if qparams.bits > BYTE else None
        self.bytes = Bytes(high, low, qparams)
        self.arguments = (
            _pointer(qparams),
            byref(_Bytes(high.data_ptr(), None if low is None else low.data_ptr(), padding)),
            torch.get_num_threads(),
        )


@functools.lru_cache(maxsize=1 << 14)
def _pointer(qparams: QParams) -> Any:
    return byref(_QParams(reciprocal(qparams), qparams.zero_point, qparams.qmax))


def _empty(shape: torch.Size | tuple[int, ...], padding: int) -> Tensor:
    if len(shape) != 4:
        return torch.empty(shape, dtype=torch.uint8, device=CPU)
    n, c, h, w = shape
    padded = (n, c, h + 2 * padding, w + 2 * padding)
    return torch.empty(padded, dtype=torch.uint8, device=CPU, memory_format=torch.channels_last)
