"""Integer layers as fused blocks see them: consumers of a quantized input, and the ops between their products."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitbrush.network.low_rank import BranchedLayer
from bitbrush.network.skip_inputs import SplitConv2d
from bitbrush.runtime.attention import AttentionKernel
from bitbrush.runtime.fused_forward import FusedForward
from bitbrush.runtime.fused_ops import ALL
from bitbrush.runtime.wrappers import Slot

ModuleLookup: TypeAlias = Callable[[str], Any]
"""Returns the denoiser's module of a name, after its layers were replaced."""


class IntegerModule(Protocol):
    """Runtime module that replaces a quantized layer; only the runtime knows the type of its quantized input."""

    is_image: bool
    """Whether inputs are (N, C, H, W) rather than tokens."""

    @property
    def border(self) -> Any:
        """Padding that quantized input must include, in pixels per side."""
        ...

    @property
    def qparams(self) -> Hashable:
        """Current quantization parameters of the input; layers with equal ones share a quantized input."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Computes the layer on floating-point input."""
        ...

    def quantize(self, x: Tensor, *, upsample: int = 1) -> Any:
        """Quantizes the input; each pixel is repeated ``upsample`` times in both directions."""
        ...

    def multiply(self, x: Any, dtype: torch.dtype, residual: Tensor | None = None) -> Tensor:
        """Multiplies quantized input by the weights and adds the bias and ``residual``."""
        ...

    def multiply_gated(self, x: Any, qparams: Any, dtype: torch.dtype) -> Any:
        """Quantizes ``value * gelu(gate)`` by another layer's ``qparams``, for the halves of :meth:`multiply`."""
        ...


Quantize: TypeAlias = Callable[[IntegerModule], Any]
"""Quantizes one fixed input by the qparams of a layer that consumes it."""


class Input(NamedTuple):
    """Input of layers: ``quantize`` computes it for the products, ``exact`` in floating point for adapters."""

    quantize: Quantize
    exact: Callable[[], Tensor]


def once(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Returns a function that computes at its first call; torch.compile traces it, unlike ``functools.cache``."""
    known: list[Tensor] = []

    def result() -> Tensor:
        if not known:
            known.append(compute())
        return known[0]

    return result


Products: TypeAlias = Callable[[Input, torch.dtype], Sequence[Tensor]]
Reading: TypeAlias = Callable[[Tensor], Tensor]
"""Computes a layer on a tensor that many blocks share."""


@dataclass(frozen=True)
class FusionBackend:
    """Operations that a runtime provides for fused blocks.

    Attributes:
        fused_ops: Implements :class:`~bitbrush.runtime.fused_ops.FusedOps` for the runtime's quantization parameters.
        together: Builds the products of consumers of one input.
        of_text: Wraps a layer of the text embedding. All blocks and many calls pass it equal values, so a runtime may
            cache results or compute them at once.
        of_time: Wraps a time projection ``layer(silu(t))``, (N, C) float32; cacheable likewise.
        forward: Class of the forwards of blocks.
    """

    fused_ops: Any
    attention: AttentionKernel
    together: Callable[["Sequence[Consumer]"], Products]
    of_text: Callable[[nn.Module], Reading]
    of_time: Callable[[nn.Module], Reading]
    forward: type[FusedForward] = FusedForward


@dataclass(frozen=True)
class Consumer:
    """Layer that consumes some channels of an input, alone or with a low-rank branch.

    ``slot`` is its place in the denoiser, where adapters may be attached; None where another consumer adds them.
    """

    layer: IntegerModule
    channels: slice
    branch: "_Branch | None" = None
    slot: Slot | None = None

    @property
    def parts(self) -> tuple[IntegerModule, ...]:
        """Lists the layer and, if present, both factors of the branch."""
        return (self.layer,) if self.branch is None else (self.layer, self.branch.down, self.branch.up)

    @property
    def qparams(self) -> Hashable:
        """Current quantization parameters of all parts."""
        return tuple(part.qparams for part in self.parts)

    @property
    def alone(self) -> bool:
        """Whether the layer's product is all of the output now."""
        return self.branch is None and (self.slot is None or self.slot.wrapper is None)

    def product(self, x: Input, dtype: torch.dtype, residual: Tensor | None = None) -> Tensor:
        """Computes the output plus ``residual``; ``x.quantize(part)`` is the input by the qparams of that part."""
        if self.branch is not None:
            thin = self.branch.down.multiply(x.quantize(self.branch.down), dtype)
            residual = self.branch.up.multiply(self.branch.up.quantize(thin), dtype, residual)
        return self.adapt(self.layer.multiply(x.quantize(self.layer), dtype, residual), x.exact)

    def adapt(self, y: Tensor, exact: Callable[[], Tensor]) -> Tensor:
        """Adds the adapters' output for the floating-point input ``exact()`` to ``y``."""
        return y if self.slot is None else self.slot.adapt(y, exact)

    def of(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Computes :meth:`product` of a floating-point input without a prologue."""
        return self.product(Input(lambda part: part.quantize(x), lambda: x), x.dtype, residual)


class _Branch(NamedTuple):
    down: IntegerModule
    up: IntegerModule


@dataclass(frozen=True)
class OneByOne:
    """Products of one input, quantized once for all ``consumers`` with equal quantization parameters."""

    consumers: "Sequence[Consumer]"

    def __call__(self, x: Input, dtype: torch.dtype) -> list[Tensor]:
        """Returns the output of each consumer in order."""
        known: dict[Hashable, Any] = {}

        def quantized_once(layer: IntegerModule) -> Any:
            qparams = layer.qparams
            if qparams not in known:
                known[qparams] = x.quantize(layer)
            return known[qparams]

        shared = Input(quantized_once, once(x.exact))
        return [one.product(shared, dtype) for one in self.consumers]


def project_time(layer: nn.Module, embedded: Tensor) -> Tensor:
    """Computes the time term of a residual block: (N, C) float32."""
    y: Tensor = layer(F.silu(embedded)).float()
    return y


def consumers_at(part: ModuleLookup, name: str) -> tuple[Consumer, ...]:
    """Lists the consumers that replace a layer: itself, or the halves of a convolution split at a skip input.

    The last of them adds the output of the layer's adapters.
    """
    slot = Slot.at(part, name)
    module = slot.layer
    if isinstance(module, SplitConv2d):
        hidden, skip = consumer_of(module.hidden), consumer_of(module.skip)
        return (
            replace(hidden, channels=slice(0, module.begin)),
            replace(skip, channels=slice(module.begin, None), slot=slot),
        )
    return (replace(consumer_of(module), slot=slot),)


def consumer_at(part: ModuleLookup, name: str) -> Consumer:
    """Returns the only consumer that replaces a layer."""
    (consumer,) = consumers_at(part, name)
    return consumer


def consumer_of(module: Any) -> Consumer:
    """Wraps a layer of the runtime as a consumer, with its low-rank branch if it has one."""
    if isinstance(module, BranchedLayer):
        down: Any = module.down
        up: Any = module.up
        residual: Any = module.residual
        return Consumer(residual, ALL, _Branch(down, up))
    return Consumer(module, ALL)
