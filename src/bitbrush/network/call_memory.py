"""What one denoiser call holds in memory, at every layer and block: measured on a real call, not reckoned."""

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
    """Of one call of a layer or block; all in bytes but ``rows`` and ``positions``.

    ``live``: what the denoiser call holds when it arrives there. ``inner``: the most that the module adds to it.
    ``rows`` of the first input, and ``positions`` of the output for each row, the channels not counted.
    """

    live: int
    inner: int
    inputs: int
    outputs: int
    rows: int
    positions: int


@dataclass(frozen=True)
class CallMemory:
    """``most``: bytes that the denoiser call adds to what was there before; ``modules``: by name, those called."""

    most: int
    modules: Mapping[str, ModuleUse]


def measure_call_memory(denoiser: nn.Module, call: DenoiserCall, names: Iterable[str]) -> tuple[Any, CallMemory]:
    """The call's output, and what it took. ``names``: of layers and blocks; of several uses the first counts.

    Weights that layers widen for their call are not counted: they do not grow with the number of rows.
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
    """A convolution's channels are its second dimension, a linear layer's the last."""
    rows = first.shape[0]
    if not isinstance(output, Tensor) or output.dim() < 2:
        return rows, 1
    channels = output.shape[1] if output.dim() == 4 else output.shape[-1]
    return rows, max(1, output.numel() // (rows * channels))
