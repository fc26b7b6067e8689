"""Memory of one denoiser call at every layer and block: measured on a real call, not estimated."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from bitbrush.network.lazy_weights import LazyWeight, lazy_layers
from bitbrush.session.live_memory import LiveMemory, tensor_bytes, uncounted
from bitbrush.timeline.trajectory import DenoiserCall


@dataclass(frozen=True)
class ModuleUse:
    """Memory of one call of a layer or block; all in bytes except ``rows`` and ``positions``.

    ``live`` is what the denoiser call holds when it reaches the module. ``inner`` is the most that the module adds to
    it. ``inputs`` and ``outputs`` are the sizes of its tensors. ``rows`` counts rows of the first input, and
    ``positions`` the output positions per row, without the channels.
    """

    live: int
    inner: int
    inputs: int
    outputs: int
    rows: int
    positions: int


@dataclass(frozen=True)
class CallMemory:
    """Memory of a denoiser call.

    ``most`` is the peak, in bytes, that the call adds to what existed before. ``modules`` contains the called modules
    by name.
    """

    most: int
    modules: Mapping[str, ModuleUse]


def measure_call_memory(denoiser: nn.Module, call: DenoiserCall, names: Iterable[str]) -> tuple[Any, CallMemory]:
    """Runs a denoiser call and measures its memory.

    Weights that are dequantized during the call of their layer are not counted: they do not grow with the number of
    rows.

    Args:
        denoiser: Network to call.
        call: Arguments of the call.
        names: Layers and blocks to measure; the first of several uses counts.

    Returns:
        The call's output and its memory.
    """
    memory = LiveMemory()
    modules: dict[str, ModuleUse] = {}
    with ExitStack() as stack:
        for layer in lazy_layers(denoiser).values():
            stack.callback(setattr, layer, "lazy_weight", layer.lazy_weight)
            layer.lazy_weight = LazyWeight(partial(_uncounted, layer.lazy_weight.read))
        for name in names:
            module = denoiser.get_submodule(name)
            before, after = _hooks(name, memory, modules)
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        with memory:
            output = call.run(denoiser)
    return output, CallMemory(memory.most, modules)


def _uncounted(read: Callable[[], Tensor]) -> Tensor:
    with uncounted():
        return read()


def _hooks(
    name: str, memory: LiveMemory, modules: dict[str, ModuleUse]
) -> tuple[Callable[..., None], Callable[..., None]]:
    entered: list[tuple[int, int]] = []

    def before(_: nn.Module, __: tuple[Any, ...], ___: dict[str, Any]) -> None:
        entered.append((memory.now, memory.most))
        memory.most = memory.now

    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        live, most = entered.pop()
        inner = memory.most - live
        memory.most = max(memory.most, most)
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        rows, positions = _rows_and_positions(first, output)
        use = ModuleUse(live, inner, tensor_bytes((args, kwargs)), tensor_bytes(output), rows, positions)
        modules.setdefault(name, use)

    return before, after


def _rows_and_positions(first: Tensor, output: Any) -> tuple[int, int]:
    """Counts rows and positions; channels are dimension 1 of a convolution's output, else the last dimension."""
    rows = first.shape[0]
    if not isinstance(output, Tensor) or output.dim() < 2:
        return rows, 1
    channels = output.shape[1] if output.dim() == 4 else output.shape[-1]
    return rows, max(1, output.numel() // (rows * channels))
