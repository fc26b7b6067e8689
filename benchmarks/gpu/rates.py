"""How fast every product of a denoiser is, against what the card can do: measured, not read off a data sheet."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.runtime.cuda.layers import IntegerLayer

_REPEATS = 20
_SIDE = 8192


def product_rates(denoiser: nn.Module, call: Callable[[], Tensor], device: torch.device) -> list[dict[str, Any]]:
    """Of each distinct product in one call: pixels, filters, products per sum, how often, milliseconds, rate.

    The slowest together first. Each is repeated alone, on what it was given.
    """
    counts: Counter[tuple[Any, ...]] = Counter()
    again: dict[tuple[Any, ...], Callable[[], Tensor]] = {}
    original = IntegerLayer._product

    def watch(layer: IntegerLayer, high: Tensor, low: Any, geometry: Any, dtype: Any, residual: Any) -> Tensor:
        y = original(layer, high, low, geometry, dtype, residual)
        shape = (y.numel() // y.shape[-1], y.shape[-1], layer.weights.data[0].numel(), residual is not None)
        counts[shape] += 1
        again.setdefault(shape, lambda: original(layer, high, low, geometry, dtype, residual))
        return y

    IntegerLayer._product = watch
    engine: Any = denoiser.forward
    engine.forget()  # a replay would launch its kernels without us
    try:
        call()
    finally:
        IntegerLayer._product = original
    rows = []
    for shape, count in counts.items():
        milliseconds = 1000 * seconds_of(again[shape], device)
        rows.append(
            {
                **dict(zip(("pixels", "filters", "products"), shape[:3], strict=True)),
                "residual": shape[3],
                "count": count,
                "milliseconds": round(milliseconds, 4),
                "tera_operations": round(2 * shape[0] * shape[1] * shape[2] / milliseconds / 1e9, 1),
            }
        )
    return sorted(rows, key=lambda row: -row["count"] * row["milliseconds"])


def limits(device: torch.device) -> dict[str, float]:
    """Tera-operations a second of the card's own large products in bytes and in fp16, and terabytes it copies."""
    if device.type != "cuda":
        return {}
    half = torch.randn(_SIDE, _SIDE, device=device, dtype=torch.float16)
    whole = torch.randint(-128, 128, (_SIDE, _SIDE), device=device, dtype=torch.int8)
    large = torch.empty(1 << 30, device=device, dtype=torch.int8)
    operations = 2 * _SIDE**3 / 1e12
    return {
        "int8_tera_operations": round(operations / seconds_of(lambda: torch._int_mm(whole, whole.t()), device)),
        "fp16_tera_operations": round(operations / seconds_of(lambda: half @ half, device)),
        "copied_terabytes": round(2 * large.nbytes / 1e12 / seconds_of(lambda: large.clone(), device), 2),
    }


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """On the card between events, the mean of twenty after three; elsewhere once."""
    if device.type != "cuda":
        before = time.perf_counter()
        call()
        return time.perf_counter() - before
    for _ in range(3):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(_REPEATS):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / _REPEATS
