"""PEFT's wrappers of layers, as runtimes see them. They are recognized by their attributes, since peft is optional."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

BASE = "base_layer"
_LOW_RANK = "peft.tuners.lora.layer"
_ADDING = "Linear", "Conv2d"


def is_wrapper(module: nn.Module) -> bool:
    """Tells whether ``module`` is a layer with adapters."""
    return BASE in module._modules and hasattr(module, "adapter_layer_names")


def wrappers_in(root: nn.Module) -> tuple[nn.Module, ...]:
    """Lists the layers with adapters in ``root``."""
    return tuple(module for module in root.modules() if is_wrapper(module))


def base_of(wrapper: nn.Module) -> nn.Module:
    """Returns the layer that a wrapper calls."""
    base = wrapper._modules[BASE]
    assert base is not None
    return base


def adapters_of(wrapper: Any) -> set[str]:
    """Returns the names of a wrapper's adapters."""
    return {name for key in wrapper.adapter_layer_names for name in getattr(wrapper, key, {})}


def is_active(wrapper: Any) -> bool:
    """Tells whether a wrapper changes the output of its layer now."""
    return not wrapper.disable_adapters and not adapters_of(wrapper).isdisjoint(wrapper.active_adapters)


def adds_to_output(wrapper: Any) -> bool:
    """Tells whether a wrapper only adds to its layer's output, whatever its adapters are: plain LoRA does."""
    kind = type(wrapper)
    return kind.__module__ == _LOW_RANK and kind.__name__ in _ADDING and not getattr(wrapper, "lora_variant", None)


def state_of(wrapper: Any) -> Hashable:
    """Returns all that a wrapper's computation depends on, apart from parameters."""
    scales = getattr(wrapper, "scaling", {}).items()  # tensors of adapters to swap in place are read where they are
    known = tuple((name, id(scale) if isinstance(scale, Tensor) else scale) for name, scale in scales)
    return wrapper.disable_adapters, tuple(wrapper.active_adapters), known


@dataclass(frozen=True)
class Slot:
    """Place of a layer of a fused block, where PEFT may put a wrapper of the layer.

    Attributes:
        parent: Module that contains it.
        own: Its name there.
        layer: What was there when the block was fused.
    """

    parent: nn.Module
    own: str
    layer: nn.Module

    @classmethod
    def at(cls, part: Callable[[str], Any], name: str) -> Self:
        """Finds the place of the layer ``name``; ``part`` returns the denoiser's module of a name."""
        parent, _, own = name.rpartition(".")
        return cls(part(parent), own, part(name))

    @property
    def wrapper(self) -> nn.Module | None:
        """Wrapper with active adapters, or None."""
        present = self.parent._modules[self.own]
        return None if present is None or present is self.layer or not is_active(present) else present

    def adapt(self, y: Tensor, x: Callable[[], Tensor]) -> Tensor:
        """Adds the output of active adapters for the layer's input ``x()`` to its output ``y``."""
        wrapper = self.wrapper
        if wrapper is None:
            return y
        adapted: Tensor = wrapper(x(), y)
        return adapted
