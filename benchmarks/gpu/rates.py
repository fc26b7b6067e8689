"""How fast every product of a denoiser is, against what the card can do: measured, not read off a data sheet."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.runtime.cuda import ops
from bitbrush.runtime.cuda.graphs import CudaGraphs

_REPEATS = 20
_SIDE = 8192


@dataclass(frozen=True)
class Measured:
    """A distinct product of a call: its kernel, pixels, filters and products per sum; how often; to have it again."""

    kernel: str
    pixels: int
    filters: int
    products: int
    residual: bool
    count: int
    again: Callable[[], Any]

    def told(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("kernel", "pixels", "filters", "products", "residual", "count")}

    def rate(self, seconds: float) -> float:
        """Tera-operations a second."""
        return round(2 * self.pixels * self.filters * self.products / seconds / 1e12, 1)


def products_of(denoiser: nn.Module, call: Callable[[], Tensor]) -> list[Measured]:
    """Lists the distinct products of one call."""
    counts: Counter[tuple[Any, ...]] = Counter()
    again: dict[tuple[Any, ...], Callable[[], Any]] = {}

    def note(name: str, product: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        y = product(*args)
        weight, residual = args[2], name == "integer_product" and args[7] is not None
        outputs = y if isinstance(y, Tensor) else y[0]
        filters = len(args[5])
        pixels = outputs.numel() // (filters if isinstance(y, Tensor) else filters // 2)
        products = weight[0].numel() * (1 if args[3] is None else 2)
        key = name, pixels, filters, products, residual
        counts[key] += 1
        again.setdefault(key, lambda: product(*args))
        return y

    engine: Any = denoiser.forward
    engine.forget()  # a replay would launch its kernels without us
    with _watching(note):
        call()
    return [Measured(*key, count, again[key]) for key, count in counts.items()]


@contextmanager
def _watching(note: Callable[..., Any]) -> Iterator[None]:
    """``note(name, product, args)`` in place of every product."""
    watched: Any = ops
    originals = {name: getattr(watched, name) for name in ("integer_product", "gated_product")}
    for name, product in originals.items():
        setattr(watched, name, lambda *args, name=name, product=product: note(name, product, args))
    try:
        yield
    finally:
        for name, product in originals.items():
            setattr(watched, name, product)


def product_rates(denoiser: nn.Module, call: Callable[[], Tensor], device: torch.device) -> list[dict[str, Any]]:
    """Milliseconds and rate of each distinct product, the slowest together first.

    Each is repeated alone on what it was given, which the card's cache then holds.
    """
    rows = []
    for one in products_of(denoiser, call):
        seconds = seconds_of(one.again, device)
        figures = {"milliseconds": round(1000 * seconds, 4), "tera_operations": one.rate(seconds)}
        rows.append({**one.told(), **figures})
    return sorted(rows, key=lambda row: -row["count"] * row["milliseconds"])


def limits(device: torch.device) -> dict[str, float]:
    """Tera-operations a second of the card's own large products in bytes and in fp16, and terabytes it copies."""
    if device.type != "cuda":
        return {}
    half = torch.randn(_SIDE, _SIDE, device=device, dtype=torch.float16)
    whole = torch.randint(-128, 128, (_SIDE, _SIDE), device=device, dtype=torch.int8)
    large, other = (torch.empty(1 << 30, device=device, dtype=torch.int8) for _ in range(2))
    operations = 2 * _SIDE**3 / 1e12
    return {
        "int8_tera_operations": round(operations / seconds_of(lambda: torch._int_mm(whole, whole.t()), device)),
        "fp16_tera_operations": round(operations / seconds_of(lambda: half @ half, device)),
        "copied_terabytes": round(2 * large.nbytes / 1e12 / seconds_of(lambda: other.copy_(large), device), 2),
        **_fp8_limit(half, operations, device),
    }


def _fp8_limit(half: Tensor, operations: float, device: torch.device) -> dict[str, float]:
    """Rate of large products of 8-bit floats, where the GPU has them: what its matrix units do in bytes of any kind."""
    if torch.cuda.get_device_capability(device) < (8, 9):
        return {}
    x, one = half.to(torch.float8_e4m3fn), torch.ones((), device=device)
    product = partial(torch._scaled_mm, x, x.t(), one, one, out_dtype=torch.bfloat16)
    return {"fp8_tera_operations": round(operations / seconds_of(product, device))}


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """On the card the mean of twenty in one graph, as launching one takes longer than many a kernel; elsewhere once."""
    if device.type != "cuda":
        before = time.perf_counter()
        call()
        return time.perf_counter() - before
    replay = CudaGraphs()(lambda: [call() for _ in range(_REPEATS)][-1])
    replay()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / _REPEATS
