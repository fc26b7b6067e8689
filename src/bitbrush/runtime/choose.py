"""Selection of the runtime that executes an artifact on this machine, and the reason for it."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch

from bitbrush.runtime.cuda.graphs import CudaGraphs
from bitbrush.runtime.cuda.package import has_gpu, require_fast_bytes, require_gpu
from bitbrush.runtime.cuda.runtime import CudaRuntime
from bitbrush.runtime.interface import Runtime, RuntimeUnavailable
from bitbrush.runtime.onednn.probe import require_exact_products
from bitbrush.runtime.onednn.runtime import OneDnnRuntime
from bitbrush.runtime.onednn.weights import Memory
from bitbrush.runtime.reference import ReferenceRuntime
from bitbrush.runtime.tools import best_tools
from bitbrush.session.offload import CPU


class RuntimeName(StrEnum):
    """Names of the runtimes; AUTO selects the fastest that is exact on this machine."""

    AUTO = "auto"
    REFERENCE = "reference"
    ONEDNN = "onednn"
    CUDA = "cuda"


@dataclass(frozen=True)
class Choice:
    """Selected runtime and how it runs.

    Attributes:
        runtime: The runtime.
        reason: Why this runtime was selected, as a message.
        shortfall: What makes it slower here than it could be, or None.
        device: Device that a pipeline must be on.
        memory: How weights are stored, those of networks that are not quantized included.
        unquantized: Dtype that text encoders and VAE compute in where they are not quantized.
    """

    runtime: Runtime
    reason: str
    shortfall: str | None = None
    device: torch.device = CPU
    memory: Memory = Memory.EXPANDED
    unquantized: torch.dtype = torch.float32

    def place(self, pipe: Any) -> Any:
        """Moves the pipeline to the device of the runtime and returns it."""
        return pipe if self.device == CPU else pipe.to(self.device)


def choose_runtime(
    name: RuntimeName = RuntimeName.AUTO, *, dtype: torch.dtype | None = None, memory: Memory = Memory.EXPANDED
) -> Choice:
    """Selects a runtime by name; AUTO selects the fastest that is exact on this machine.

    Args:
        name: Name of the runtime.
        dtype: Dtype of everything between the integer products, float32 or bfloat16. None: bfloat16, or
            float32 on a CPU without native bfloat16 products. The reference runtime computes in float32.
        memory: How weights are stored.

    Raises:
        RuntimeUnavailable: The named runtime cannot run on this machine.
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
                require_fast_bytes()
                return _cuda(dtype, memory, "8-bit products on the GPU")
            except RuntimeUnavailable as error:
                chosen = _on_processor(dtype, memory)
                why = "; ".join(filter(None, (f"the GPU is not used: {error}", chosen.shortfall)))
                return replace(chosen, shortfall=why)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def runtime_named(
    name: str = RuntimeName.AUTO,
    dtype: str | torch.dtype | None = None,
    memory: str = Memory.EXPANDED,
    device: torch.device | None = None,
    unquantized: str | torch.dtype = torch.float32,
) -> Choice:
    """Selects a runtime by strings, see :func:`choose_runtime`.

    Args:
        name: Name of the runtime.
        dtype: Dtype of everything between the integer products, or None.
        memory: How weights are stored.
        device: Device that it must compute on; None: any.
        unquantized: Dtype that text encoders and VAE compute in where they are not quantized.

    Raises:
        ValueError: A name is unknown, or the named runtime computes on another device.
        RuntimeUnavailable: The named runtime cannot run on this machine, or it has no fast products of ``unquantized``.
    """
    for wish, given, known in (
        ("runtime", name, list(RuntimeName)),
        ("dtype", dtype_name(dtype or torch.float32), list(DTYPES)),
        ("memory", memory, list(Memory)),
        ("unquantized", dtype_name(unquantized), list(DTYPES)),
    ):
        if given not in known:
            raise ValueError(f"{wish} is {given!r}; choose from {', '.join(known)}")
    kind = None if dtype is None else DTYPES[dtype_name(dtype)]
    choice = (
        choose_runtime(RuntimeName(name), dtype=kind, memory=Memory(memory))
        if device is None
        else _runtime_on(device, RuntimeName(name), kind, Memory(memory))
    )
    return _with_unquantized(choice, DTYPES[dtype_name(unquantized)])


def _with_unquantized(choice: Choice, dtype: torch.dtype) -> Choice:
    if dtype == torch.bfloat16 and choice.device == CPU and not _multiplies_bfloat16():
        raise RuntimeUnavailable(
            "unquantized is bfloat16, and this CPU has no instructions for it (avx512_bf16 or amx_bf16): it would be "
            "slower than float32; leave it at float32"
        )
    return choice if dtype == choice.unquantized else replace(choice, unquantized=dtype)


def _runtime_on(device: torch.device, name: RuntimeName, dtype: torch.dtype | None, memory: Memory) -> Choice:
    if name is RuntimeName.AUTO and device.type == "cpu":
        return _on_processor(dtype, memory)
    chosen = RuntimeName.CUDA if name is RuntimeName.AUTO else name
    choice = choose_runtime(chosen, dtype=dtype, memory=memory)
    if choice.runtime.device is None:  # it computes on any device
        return replace(choice, device=device)
    own = choice.device
    if device.type != own.type or device.index not in (None, own.index):
        raise ValueError(f"device is {device}, but the runtime {chosen} computes on {own}; name that device, or none")
    return choice


def dtype_name(dtype: str | torch.dtype) -> str:
    """Returns the name of a dtype without the prefix ``torch.``."""
    return str(dtype).removeprefix("torch.")


def _on_processor(dtype: torch.dtype | None, memory: Memory) -> Choice:
    try:
        return _onednn(dtype, memory, "8-bit products are exact and fast on this processor")
    except RuntimeUnavailable as error:
        return _reference(dtype, memory, f"integers are emulated: {error}")


def _cuda(dtype: torch.dtype | None, memory: Memory, reason: str) -> Choice:
    require_gpu()
    device = torch.device("cuda", torch.cuda.current_device())
    runtime = CudaRuntime(device, dtype or torch.bfloat16, nibbles=memory is Memory.LOW, record=CudaGraphs())
    return Choice(runtime, reason, device=device, memory=memory)


def _onednn(dtype: torch.dtype | None, memory: Memory, reason: str) -> Choice:
    require_exact_products()
    tools = best_tools()
    runtime = OneDnnRuntime(tools, dtype or _fastest_dtype(), memory)
    return Choice(runtime, reason, tools.shortfall, memory=memory)


def _fastest_dtype() -> torch.dtype:
    """Selects bfloat16 where the CPU multiplies it natively, else float32."""
    return torch.bfloat16 if _multiplies_bfloat16() else torch.float32


def _multiplies_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _reference(dtype: torch.dtype | None, memory: Memory, reason: str) -> Choice:
    if dtype not in (None, torch.float32):
        raise RuntimeUnavailable(f"dtype is {dtype}, but the reference runtime computes in float32 ({reason})")
    if memory is Memory.LOW:
        raise RuntimeUnavailable(f"memory is low, but the reference runtime expands every weight to float32 ({reason})")
    return Choice(ReferenceRuntime(), reason)
