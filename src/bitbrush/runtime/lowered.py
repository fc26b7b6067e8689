"""Lowered denoisers: how they are executed, and how they react where users treat them as any other module."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from bitbrush.network.extension import Extension, extend_
from bitbrush.network.layers import QuantizedLayer
from bitbrush.network.other_networks import Embeddings, integer_part, set_embeddings
from bitbrush.network.own_dtype import ReportsFloat32
from bitbrush.runtime.adapters import make_adaptable_, show_weight_shapes
from bitbrush.runtime.choose import Choice
from bitbrush.runtime.integer_weight import IntegerParameters
from bitbrush.runtime.interface import Execution
from bitbrush.runtime.refusals import refuse_unquantized
from bitbrush.timeline.schedule import Activations

_ATTRIBUTE = "bitbrush_lowered"
_ACCELERATE_HOOK = "_hf_hook"
_STAYS = (
    "the layers of a quantized denoiser stay on {device}, where their kernels run, and are not placed one by one. "
    "Offload whole networks, pipe.enable_model_cpu_offload(), or the others, "
    "pipe.enable_group_offload(..., exclude_modules=['unet', 'transformer']). bitbrush.load(..., memory='low') needs "
    "less memory, and runtime='reference' allows offloading layers"
)


@dataclass(frozen=True)
class Lowered:
    """Runtime of a denoiser, and the execution and activation ranges of each quantized layer.

    ``device`` is where it computes; None: wherever the denoiser is.
    """

    runtime: str
    description: str
    reason: str
    executions: tuple[Execution, ...]
    activations: Mapping[str, Activations]
    shortfall: str | None = None
    device: torch.device | None = None

    @property
    def name(self) -> str:
        """Name and description of the runtime."""
        return f"{self.runtime}: {self.description}"


class LoweredDenoiser(Extension, nn.Module):
    """Mixin for the class of a lowered denoiser.

    Its dtypes are fixed by the runtime, and so is its device unless the runtime runs on any. Moving a pipeline or
    casting it to half precision does not change them. Arguments are cast and moved at each call instead.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        """Handles ``to()``, ``half()`` and similar methods."""
        lowered = lowered_of(self)
        if lowered is None or lowered.device is None:
            super()._apply(partial(_moved, fn), *args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses accelerate's hooks that place or offload layer by layer, before they reach the first layer.

        Raises:
            ValueError: The runtime has a device of its own.
        """
        if name == _ACCELERATE_HOOK and any(map(_places_layers, getattr(value, "hooks", (value,)))):
            self._require_movable_layers()
        super().__setattr__(name, value)

    def enable_group_offload(self, *args: Any, **kwargs: Any) -> None:
        """Offloads groups of layers as diffusers does.

        Raises:
            ValueError: The runtime has a device of its own.
        """
        self._require_movable_layers()
        super().enable_group_offload(*args, **kwargs)  # type: ignore[misc]

    def _require_movable_layers(self) -> None:
        lowered = lowered_of(self)
        if lowered is not None and lowered.device is not None:
            raise ValueError(_STAYS.format(device=lowered.device))

    def _require_traceable(self, *args: Any, fullgraph: bool = False, **_: Any) -> None:
        lowered = lowered_of(self)
        if (fullgraph or any(args)) and lowered is not None and lowered.runtime != "cuda":
            raise ValueError(
                f"torch does not trace the kernels of the {lowered.runtime} runtime, so there is no full graph of a "
                "quantized denoiser: leave out fullgraph=True"
            )

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles in place as torch does, around the denoiser's own kernels.

        Raises:
            ValueError: A full graph is asked for, and the runtime has none.
        """
        self._require_traceable(*args, **kwargs)
        super().compile(*args, **kwargs)

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compiles blocks as diffusers does.

        Raises:
            ValueError: A full graph is asked for, and the runtime has none.
        """
        self._require_traceable(*args, **kwargs)
        super().compile_repeated_blocks(*args, **kwargs)  # type: ignore[misc]

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves the denoiser without a cast; diffusers' own method refuses to cast quantized models."""
        return nn.Module.to(self, *args, **kwargs)

    def half(self) -> Self:
        """Returns the denoiser unchanged."""
        return self

    def float(self) -> Self:
        """Returns the denoiser unchanged."""
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        """Leaves the parameters without gradients.

        Raises:
            ValueError: Gradients are requested.
        """
        if requires_grad:
            raise ValueError(
                "a quantized denoiser is not trained: integer weights have no gradients. Train the full-precision "
                "pipeline and quantize that"
            )
        super().requires_grad_(False)
        return self

    def num_parameters(self, *args: Any, **kwargs: Any) -> int:
        """Counts weights and biases of all layers, including weights that share a byte."""
        listed: Any = super()
        count: int = listed.num_parameters(*args, **kwargs)
        if kwargs.get("only_trainable", any(args[:1])):
            return count
        return count + sum(one.unlisted_parameters for one in self.modules() if isinstance(one, IntegerParameters))


def _places_layers(hook: Any) -> bool:
    """Tells whether accelerate's hook of a network returns outputs to the inputs' device, as its layers have hooks."""
    return bool(getattr(hook, "io_same_device", False))


def _moved(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """Applies ``fn`` to a tensor but keeps its dtype."""
    moved = fn(tensor)
    return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)


def lower(denoiser: nn.Module, choice: Choice, layers: Iterable[QuantizedLayer]) -> None:
    """Lowers ``denoiser`` to the selected runtime and records the executions in it.

    Args:
        denoiser: Changed in place; its class becomes a :class:`LoweredDenoiser`.
        choice: Selected runtime.
        layers: Quantized layers, which may be generated one after another.
    """
    runtime = choice.runtime
    extend_(denoiser, LoweredDenoiser)
    refuse_unquantized(denoiser)
    make_adaptable_(denoiser, runtime.dtype, runtime.device)  # first: lowering takes note of the class
    activations: dict[str, Activations] = {}
    executions = runtime.lower(denoiser, _noting(activations, layers))
    show_weight_shapes(denoiser)
    lowered = Lowered(
        *(runtime.name, runtime.description, choice.reason, executions, activations, choice.shortfall),
        device=runtime.device,
    )
    setattr(denoiser, _ATTRIBUTE, lowered)


def lower_network(network: nn.Module, choice: Choice, layers: Iterable[QuantizedLayer], embeddings: Embeddings) -> None:
    """Lowers a text encoder, or the decoder of a VAE, to the selected runtime.

    Args:
        network: Component of a pipeline beside the denoiser, changed in place.
        choice: Selected runtime.
        layers: Quantized layers with their names in the component, which may be generated one after another.
        embeddings: Embedding tables.
    """
    prefix, part = integer_part(network)
    set_embeddings(network, embeddings, choice.runtime.dtype)
    start = f"{prefix}." if prefix else ""
    extend_(network, ReportsFloat32)  # pipelines take the dtype of the latents from the text encoder
    lower(part, choice, (replace(layer, name=layer.name.removeprefix(start)) for layer in layers))


def _noting(activations: dict[str, Activations], layers: Iterable[QuantizedLayer]) -> Iterator[QuantizedLayer]:
    """Yields the layers and notes their activation ranges by name."""
    for layer in layers:
        activations[layer.name] = layer.activations
        yield layer


def lowered_of(denoiser: nn.Module) -> Lowered | None:
    """Returns how a denoiser is executed; None if it computes in floating point."""
    found = getattr(denoiser, _ATTRIBUTE, None)
    return found if isinstance(found, Lowered) else None
