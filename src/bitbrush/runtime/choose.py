"""Which executor runs an artifact on this machine, and why that one."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch

from bitbrush.runtime.cuda.engine import record_cuda_graph
from bitbrush.runtime.cuda.package import has_gpu, require_gpu
from bitbrush.runtime.cuda.runtime import CudaRuntime
from bitbrush.runtime.interface import Runtime, RuntimeUnavailable
from bitbrush.runtime.onednn.probe import require_exact_products
from bitbrush.runtime.onednn.runtime import OneDnnRuntime
from bitbrush.runtime.onednn.weights import Memory
from bitbrush.runtime.reference import ReferenceRuntime
from bitbrush.runtime.tools import best_tools
from bitbrush.session.offload import CPU


class RuntimeName(StrEnum):
    AUTO = "auto"
    REFERENCE = "reference"
    ONEDNN = "onednn"
    CUDA = "cuda"


@dataclass(frozen=True)
class Choice:
    """``reason``: why this executor, for people; ``shortfall``: what makes it slower here than it could be, or None.

    ``device``: where a pipeline has to be for it; ``memory``: what is kept of the weights, other networks' included.
    """

    runtime: Runtime
    reason: str
    shortfall: str | None = None
    device: torch.device = CPU
    memory: Memory = Memory.EXPANDED

    def place(self, pipe: Any) -> Any:
        """The pipeline, its parts moved to the device."""
        return pipe if self.device == CPU else pipe.to(self.device)


def choose_runtime(
    name: RuntimeName = RuntimeName.AUTO, *, dtype: torch.dtype | None = None, memory: Memory = Memory.EXPANDED
) -> Choice:
    """The executor of that name, or with AUTO the fastest that is exact on this machine.

    ``dtype``: of everything between the integer products, float32 or bfloat16; None: bfloat16 where the processor
    multiplies it. The reference computes in float32. Raises RuntimeUnavailable where the named one cannot run.
    """
    match name:
        case RuntimeName.REFERENCE:
            return _reference(dtype, memory, "asked for")
        case RuntimeName.ONEDNN:
            return _onednn(dtype, memory, "asked for")
        case RuntimeName.CUDA:
            return _cuda(dtype, memory, "asked for")
        case RuntimeName.AUTO:
            if not has_gpu():
                return _on_processor(dtype, memory)
            try:
                return _cuda(dtype, memory, "8-bit products on the card")
            except RuntimeUnavailable as error:
                chosen = _on_processor(dtype, memory)
                why = "; ".join(filter(None, (f"the card is not used: {error}", chosen.shortfall)))
                return replace(chosen, shortfall=why)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def runtime_named(
    name: str = RuntimeName.AUTO, dtype: str | torch.dtype | None = None, memory: str = Memory.EXPANDED
) -> Choice:
    """:func:`choose_runtime` by names as people write them. Raises ValueError for an unknown one."""
    for wish, given, known in (
        ("runtime", name, list(RuntimeName)),
        ("dtype", dtype_name(dtype or torch.float32), list(DTYPES)),
        ("memory", memory, list(Memory)),
    ):
        if given not in known:
            raise ValueError(f"{wish} is {given!r}; choose from {', '.join(known)}")
    kind = None if dtype is None else DTYPES[dtype_name(dtype)]
    return choose_runtime(RuntimeName(name), dtype=kind, memory=Memory(memory))


def dtype_name(dtype: str | torch.dtype) -> str:
    """The name of a type as people write it, without torch's prefix."""
    return str(dtype).removeprefix("torch.")


def _on_processor(dtype: torch.dtype | None, memory: Memory) -> Choice:
    try:
        return _onednn(dtype, memory, "8-bit products are exact and fast on this processor")
    except RuntimeUnavailable as error:
        return _reference(dtype, memory, f"integers are emulated: {error}")


def _cuda(dtype: torch.dtype | None, memory: Memory, reason: str) -> Choice:
    require_gpu()
    device = torch.device("cuda", torch.cuda.current_device())
    runtime = CudaRuntime(device, dtype or torch.bfloat16, nibbles=memory is Memory.LOW, record=record_cuda_graph)
    return Choice(runtime, reason, device=device, memory=memory)


def _onednn(dtype: torch.dtype | None, memory: Memory, reason: str) -> Choice:
    require_exact_products()
    tools = best_tools()
    runtime = OneDnnRuntime(tools, dtype or _fastest_dtype(), memory)
    return Choice(runtime, reason, tools.shortfall, memory=memory)


def _fastest_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it."""
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def _reference(dtype: torch.dtype | None, memory: Memory, reason: str) -> Choice:
    if dtype not in (None, torch.float32):
        raise RuntimeUnavailable(f"dtype is {dtype}, but the reference runtime computes in float32 ({reason})")
    if memory is Memory.LOW:
        raise RuntimeUnavailable(f"memory is low, but the reference runtime expands every weight to float32 ({reason})")
    return Choice(ReferenceRuntime(), reason)
