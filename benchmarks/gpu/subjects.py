"""Ways of running a denoiser on a card: bitbrush's, and what people use instead."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bitbrush.runtime.cuda.engine import record_cuda_graph
from bitbrush.runtime.cuda.runtime import CudaRuntime
from gpu.denoisers import PLAIN, RELAXED, Case, Shape, quantized_layers

Ready: TypeAlias = Callable[[Case], Callable[[float], Tensor]]
"""For a case, from a timestep to the prediction."""


@dataclass(frozen=True)
class Subject:
    """``prepare``: from the float32 denoiser, which it may change, to what is timed. ``timesteps``: by row, of a call.

    ``headline``: for the case of interest alone, as it takes minutes to compile.
    """

    prepare: Callable[[nn.Module, Shape, torch.device], Ready]
    timesteps: tuple[tuple[str, float], ...] = (("", PLAIN),)
    headline: bool = False


def _eager(dtype: torch.dtype, layout: torch.memory_format, denoiser: nn.Module, shape: Shape, device: Any) -> Ready:
    denoiser.to(dtype=dtype, memory_format=layout)
    return lambda case: case.call(denoiser, shape, dtype, device)


def _graphed(denoiser: nn.Module, shape: Shape, device: torch.device) -> Ready:
    ready = _eager(torch.float16, torch.channels_last, denoiser, shape, device)

    def record(case: Case) -> Callable[[float], Tensor]:
        call = ready(case)
        call(PLAIN)
        replay = record_cuda_graph(lambda: call(PLAIN))
        return lambda _: replay()

    return record


def _compiled(denoiser: nn.Module, shape: Shape, device: torch.device) -> Ready:
    denoiser.to(dtype=torch.float16, memory_format=torch.channels_last)
    fast = torch.compile(denoiser, mode="max-autotune", dynamic=False)
    return lambda case: case.call(fast, shape, torch.float16, device)


def _torchao(denoiser: nn.Module, shape: Shape, device: torch.device) -> Ready:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    denoiser.to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    quantize_(denoiser, Int8DynamicActivationInt8WeightConfig())
    fast = torch.compile(denoiser, mode="max-autotune", dynamic=False)
    return lambda case: case.call(fast, shape, torch.bfloat16, device)


def _ours(weight_bits: int, denoiser: nn.Module, shape: Shape, device: torch.device) -> Ready:
    """Weights of 4 bits in half a byte each."""
    on_card = device.type == "cuda"
    seen = Case(1, 32 if on_card else 8)
    layers = quantized_layers(denoiser, seen.call(denoiser, shape, torch.float32, device), weight_bits)
    dtype = torch.bfloat16 if on_card else torch.float32
    runtime = CudaRuntime(device, dtype, weight_bits == 4, record_cuda_graph if on_card else None)
    executions = runtime.lower(denoiser, layers)
    emulated = [one.layer for one in executions if one.fallback is not None]
    if emulated:
        raise RuntimeError(f"not in integers: {', '.join(emulated)}")
    return lambda case: case.call(denoiser, shape, dtype, device)


_STEPS = (("", PLAIN), (", relaxed step", RELAXED))
OURS = "bitbrush W8A8"
SUBJECTS = {
    OURS: Subject(partial(_ours, 8), _STEPS),
    "graph fp16, channels-last": Subject(_graphed),
    "eager fp16, channels-last": Subject(partial(_eager, torch.float16, torch.channels_last)),
    "eager fp16": Subject(partial(_eager, torch.float16, torch.contiguous_format)),
    "eager bf16": Subject(partial(_eager, torch.bfloat16, torch.contiguous_format)),
    "bitbrush W4A8, low memory": Subject(partial(_ours, 4), _STEPS),
    "compile fp16 max-autotune": Subject(_compiled, headline=True),
    "torchao int8 dynamic, compiled": Subject(_torchao, headline=True),
}
"""The most telling first: time may run out."""
HALF_PRECISION = [name for name in SUBJECTS if "fp16" in name or "bf16" in name]
