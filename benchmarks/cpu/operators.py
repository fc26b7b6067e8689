"""Where the time of a denoiser call goes, by kind of operator."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("fused by inductor", ("cpp_fused", "inductor", "CompiledFx", "Torch-Compiled")),
    ("attention", ("scaled_dot_product", "flash_attention", "attention", "softmax", "bmm", "baddbmm")),
    ("convolution", ("conv",)),
    ("linear", ("linear", "addmm", "aten::mm", "int_mm", "int8pack", "int4pack")),
    ("quantization", ("quantize", "int_repr", "aten::round", "aten::clamp")),
    ("normalization, activation", ("norm", "silu", "gelu", "sigmoid", "glu")),
    ("copies", ("copy", "aten::cat", "contiguous", "clone", "aten::to", "reorder", "aten::pad", "upsample")),
)
"""Of an operator's name, the first kind one of whose parts it contains; what contains none is "rest"."""


def profile(call: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds that the calling thread spent in operators of each kind, the largest first, and their ``total``."""
    with torch_profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    by_kind: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = _kind(event.key)
        by_kind[kind] = by_kind.get(kind, 0.0) + event.self_cpu_time_total / 1000
    total = sum(by_kind.values())
    return dict(sorted(by_kind.items(), key=lambda item: -item[1])) | {"total": total}


def _kind(name: str) -> str:
    return next((kind for kind, parts in KINDS if any(part in name for part in parts)), "rest")
