"""Ways of running a denoiser on a card: bitbrush's, and what people use instead."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from bitbrush.runtime.cuda.graphs import CudaGraphs
from bitbrush.runtime.cuda.runtime import CudaRuntime
from gpu.denoisers import PLAIN, RELAXED, Case, Shape, quantized_layers

Ready: TypeAlias = Callable[[Case], Callable[[float], Tensor]]
"""For a case, from a timestep to the prediction."""


@dataclass(frozen=True)
class Subject:
    """Way of running a denoiser.

    Args:
        prepare: From the denoiser, which it may change, to what is timed.
        dtype: Type that the denoiser is made in.
        timesteps: Timestep of a call by row.
        headline: Measured at the case of interest alone, because it takes minutes to compile.
    """

    prepare: Callable[[nn.Module, Shape, torch.device], Ready]
    dtype: torch.dtype
    timesteps: tuple[tuple[str, float], ...] = (("", PLAIN),)
    headline: bool = False


def _eager(denoiser: nn.Module, shape: Shape, device: torch.device) -> Ready:
    dtype = next(denoiser.parameters()).dtype
    denoiser.to(memory_format=torch.channels_last)
    return lambda case: case.call(denoiser, shape, dtype, device)


def _graphed(denoiser: nn.Module, shape: Shape, device: torch.device) -> Ready:
    ready = _eager(denoiser, shape, device)

    def record(case: Case) -> Callable[[float], Tensor]:
        call = ready(case)
        call(PLAIN)
        replay = CudaGraphs()(lambda: call(PLAIN))
        return lambda _: replay()

    return record


def _compiled(denoiser: nn.Module, shape: Shape, device: torch.device) -> Ready:
    denoiser.to(memory_format=torch.channels_last)
    fast = torch.compile(denoiser, mode="reduce-overhead", dynamic=False)
    return lambda case: case.call(fast, shape, torch.float16, device)


def _torchao(denoiser: nn.Module, shape: Shape, device: torch.device) -> Ready:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    denoiser.to(memory_format=torch.channels_last)
    quantize_(denoiser, Int8DynamicActivationInt8WeightConfig())
    fast = torch.compile(denoiser, mode="reduce-overhead", dynamic=False)
    return lambda case: case.call(fast, shape, torch.bfloat16, device)


def _ours(weight_bits: int, denoiser: nn.Module, shape: Shape, device: torch.device) -> Ready:
    """Weights of 4 bits in half a byte each."""
    on_card = device.type == "cuda"
    seen = Case(1, 32 if on_card else 8)
    layers = quantized_layers(denoiser, seen.call(denoiser, shape, torch.float32, device), weight_bits)
    dtype = torch.bfloat16 if on_card else torch.float32
    runtime = CudaRuntime(device, dtype, weight_bits == 4, CudaGraphs() if on_card else None)
    executions = runtime.lower(denoiser, layers)
    emulated = [one.layer for one in executions if one.fallback is not None]
    if emulated:
        raise RuntimeError(f"not in integers: {', '.join(emulated)}")
    return lambda case: case.call(denoiser, shape, dtype, device)


_STEPS = (("", PLAIN), (", relaxed step", RELAXED))
OURS, COMPILED, GRAPHED = "bitbrush W8A8", "compile fp16", "graph fp16, channels-last"
SUBJECTS = {
    OURS: Subject(partial(_ours, 8), torch.float32, _STEPS),
    COMPILED: Subject(_compiled, torch.float16, headline=True),
    GRAPHED: Subject(_graphed, torch.float16),
    "bitbrush W4A8, low memory": Subject(partial(_ours, 4), torch.float32, _STEPS),
    "torchao int8 dynamic, compiled": Subject(_torchao, torch.bfloat16, headline=True),
    "eager bf16": Subject(_eager, torch.bfloat16),
}
"""The most telling first: time may run out. ``torch.compile`` has the mode ``reduce-overhead``: CUDA graphs, and no
search over every product's algorithms, which takes longer than all else."""
