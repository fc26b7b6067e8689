"""A lowered denoiser: what it tells of itself, and what it does where users treat it as any other module."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Never, Self

import torch
from torch import Tensor, nn

from bitbrush.network.extension import Extension, extend_
from bitbrush.network.layers import QuantizedLayer
from bitbrush.runtime.choose import Choice
from bitbrush.runtime.integer_weight import IntegerParameters
from bitbrush.runtime.interface import Execution
from bitbrush.runtime.refusals import refuse_unquantized

_ATTRIBUTE = "bitbrush_lowered"


@dataclass(frozen=True)
class Lowered:
    """The executor of a denoiser and what became of each quantized layer.

    ``device``: where it computes, None where it computes wherever the denoiser is.
    """

    runtime: str
    description: str
    reason: str
    executions: tuple[Execution, ...]
    shortfall: str | None = None
    device: torch.device | None = None

    @property
    def name(self) -> str:
        """Of the executor, with what it computes."""
        return f"{self.runtime}: {self.description}"


class LoweredDenoiser(Extension, nn.Module):
    """What is added to a denoiser's class.

    Its types are its runtime's, and so is its device unless the runtime runs on any: a pipeline that is moved or cast
    to half precision leaves it as it is. Arguments are cast and moved at each call instead.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any) -> Self:
        """Behind ``to()``, ``half()`` and their like."""
        lowered = lowered_of(self)
        if lowered is None or lowered.device is None:
            super()._apply(partial(_moved, fn), *args)  # type: ignore[no-untyped-call]
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves the denoiser; diffusers' own method refuses to cast quantized models, this one does not cast."""
        return nn.Module.to(self, *args, **kwargs)

    def half(self) -> Self:
        return self

    def float(self) -> Self:
        return self

    def num_parameters(self, *args: Any, **kwargs: Any) -> int:
        """Counts weights and biases of all layers, also where two weights share a byte."""
        listed: Any = super()
        count: int = listed.num_parameters(*args, **kwargs)
        if kwargs.get("only_trainable", any(args[:1])):
            return count
        return count + sum(one.unlisted_parameters for one in self.modules() if isinstance(one, IntegerParameters))

    def save_pretrained(self, *_: Any, **__: Any) -> Never:
        raise ValueError("a quantized denoiser is not serializable from memory; copy the artifact's folder instead")


def _moved(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """What ``fn`` makes of a tensor, but in the tensor's own type."""
    moved = fn(tensor)
    return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)


def lower(denoiser: nn.Module, choice: Choice, layers: Iterable[QuantizedLayer]) -> None:
    """Lets the chosen runtime execute ``denoiser``, which becomes a :class:`LoweredDenoiser` and remembers how."""
    runtime = choice.runtime
    extend_(denoiser, LoweredDenoiser)
    refuse_unquantized(denoiser)
    executions = runtime.lower(denoiser, layers)
    lowered = Lowered(
        runtime.name, runtime.description, choice.reason, executions, choice.shortfall, device=runtime.device
    )
    setattr(denoiser, _ATTRIBUTE, lowered)


def lowered_of(denoiser: nn.Module) -> Lowered | None:
    """How a denoiser is executed; None where it computes in floating point."""
    found = getattr(denoiser, _ATTRIBUTE, None)
    return found if isinstance(found, Lowered) else None
