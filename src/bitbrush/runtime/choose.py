"""Which executor runs an artifact on this machine, and why that one."""

from dataclasses import dataclass
from enum import StrEnum

import torch

from bitbrush.runtime.interface import Runtime, RuntimeUnavailable
from bitbrush.runtime.onednn.probe import require_exact_products
from bitbrush.runtime.onednn.runtime import OneDnnRuntime
from bitbrush.runtime.onednn.weights import Memory
from bitbrush.runtime.reference import ReferenceRuntime
from bitbrush.runtime.tools import best_tools


class RuntimeName(StrEnum):
    AUTO = "auto"
    REFERENCE = "reference"
    ONEDNN = "onednn"


@dataclass(frozen=True)
class Choice:
    """``reason``: why this executor, for people; ``shortfall``: what makes it slower here than it could be, or None."""

    runtime: Runtime
    reason: str
    shortfall: str | None = None


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
        case RuntimeName.AUTO:
            try:
                return _onednn(dtype, memory, "8-bit products are exact and fast on this processor")
            except RuntimeUnavailable as error:
                return _reference(dtype, memory, f"integers are emulated: {error}")


def runtime_named(name: str) -> Choice:
    """:func:`choose_runtime` by a name as people write it. Raises ValueError for an unknown one."""
    if name not in list(RuntimeName):
        raise ValueError(f"runtime is {name!r}; choose from {', '.join(RuntimeName)}")
    return choose_runtime(RuntimeName(name))


def _onednn(dtype: torch.dtype | None, memory: Memory, reason: str) -> Choice:
    require_exact_products()
    tools = best_tools()
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    dtype = dtype or (torch.bfloat16 if fast else torch.float32)
    return Choice(OneDnnRuntime(tools, dtype, memory), reason, tools.shortfall)


def _reference(dtype: torch.dtype | None, memory: Memory, reason: str) -> Choice:
    if dtype not in (None, torch.float32):
        raise RuntimeUnavailable(f"dtype is {dtype}, but the reference runtime computes in float32 ({reason})")
    if memory is Memory.LOW:
        raise RuntimeUnavailable(f"memory is low, but the reference runtime expands every weight to float32 ({reason})")
    return Choice(ReferenceRuntime(), reason)
