"""Weights kept in a narrow form, integers or half precision or on disk, and widened for each call of their layer.

A layer that holds its weight so is still a Conv2d or Linear whose ``weight`` is float32: reading it widens it. Only
``state_dict()`` and ``parameters()`` do not know it; :func:`state_readers` does.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from bitbrush.network.extension import Extension, extend_
from bitbrush.numerics.weights import QuantizedWeight
from bitbrush.session.offload import (
    CPU,
    Offload,
    is_offloaded,
    release,
)

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class LazyWeight:
    """``read`` yields the weight in float32, in memory that nobody else has."""

    read: Callable[[], Tensor]

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self  # it never changes, so that copies of a network share it


class LazyLayer(Extension):
    """What is added to a Conv2d or Linear; a parameter that is set all the same comes before what is held."""

    lazy_weight: LazyWeight
    _parameters: dict[str, nn.Parameter | None]

    @property
    def weight(self) -> Tensor:
        own = self._parameters["weight"]
        return self.lazy_weight.read() if own is None else own


def set_lazy_weight(layer: nn.Module, weight: LazyWeight) -> None:
    """From now on a Conv2d or Linear has ``weight``, and no parameter of that name."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    extend_(layer, LazyLayer)
    layer.register_parameter("weight", None)
    object.__setattr__(layer, "lazy_weight", weight)


def set_quantized_weight(layer: nn.Module, weight: QuantizedWeight, bias: Tensor | None) -> None:
    """The layer computes with the integers from now on; it keeps its bias where that is None."""
    set_lazy_weight(layer, LazyWeight(weight.dequantize))
    if bias is not None and layer.bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)


def device_of(network: nn.Module) -> torch.device:
    """Where the network computes: of its first parameter that has values."""
    values = itertools.chain(network.parameters(), network.buffers())
    return next((one.device for one in values if not one.is_meta), CPU)


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """Of a Conv2d or Linear, without widening what it holds."""
    if isinstance(layer, nn.Conv2d):
        return (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    assert isinstance(layer, nn.Linear)
    return (layer.out_features, layer.in_features)


def show_widths_(module: nn.Module, layer: nn.Module) -> None:
    """Gives what stands for a Conv2d or Linear that layer's widths: SDXL's pipelines ask their U-Net for one."""
    named = ("in_channels", "out_channels") if isinstance(layer, nn.Conv2d) else ("in_features", "out_features")
    for name in named:
        setattr(module, name, getattr(layer, name))


def shallow_copy(network: nn.Module) -> nn.Module:
    """A copy of the modules that shares every tensor; neither notices when the other is given new ones."""
    memo: dict[int, Any] = {id(one): nn.Parameter(one.detach(), requires_grad=False) for one in network.parameters()}
    memo |= {id(one): one.detach() for one in network.buffers()}
    return copy.deepcopy(network, memo)


def in_float32(network: nn.Module) -> nn.Module:
    """The network itself if all of it is float32; else a twin that computes in float32.

    Conv2d and Linear weights in half precision stay so and are widened for each call, which is exact.
    """
    narrow = any(one.dtype in HALF for one in (*network.parameters(), *network.buffers()))
    if not narrow:
        return network
    wide = shallow_copy(network)
    for layer in _layers(wide):
        if layer.weight.dtype in HALF:
            set_lazy_weight(layer, LazyWeight(layer.weight.detach().float))
    return wide.float()


def offload_weights(network: nn.Module, offload: Offload) -> None:
    """Every Conv2d and Linear reads its weight from the disk from now on, for each call; the rest becomes float32."""
    for layer in _layers(network):
        weight = offload.put(layer.weight.detach())
        if not is_offloaded(weight):
            weight = weight.clone()  # as part of a checkpoint's mapping it would keep the whole of it
        set_lazy_weight(layer, LazyWeight(partial(_read, weight)))
    network.float()


def materialized(network: nn.Module) -> nn.Module:
    """The network itself if it holds nothing; else a twin that has all of its weights as float32 parameters."""
    return materialize_(shallow_copy(network)) if lazy_layers(network) else network


def materialize_(network: nn.Module) -> nn.Module:
    """The network itself, what its layers hold turned into float32 parameters."""
    for name, layer in lazy_layers(network).items():
        network.get_submodule(name).register_parameter(
            "weight", nn.Parameter(layer.lazy_weight.read(), requires_grad=False)
        )
    return network


def lazy_layers(network: nn.Module) -> dict[str, LazyLayer]:
    """Those that hold their weight, by name."""
    holding = {name: module for name, module in network.named_modules() if isinstance(module, LazyLayer)}
    return {name: module for name, module in holding.items() if module._parameters["weight"] is None}


def state_readers(network: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """``state_dict()`` with what layers hold, each tensor read when it is asked for."""
    readers: dict[str, Callable[[], Tensor]] = {key: one.detach for key, one in network.state_dict().items()}
    return readers | {f"{name}.weight": layer.lazy_weight.read for name, layer in lazy_layers(network).items()}


def count_lazy_weights(network: nn.Module) -> int:
    """How many weights the layers hold that are no parameters."""
    return sum(math.prod(weight_shape(network.get_submodule(name))) for name in lazy_layers(network))


def largest_lazy_weight(network: nn.Module) -> int:
    """Of the largest, how many weights; 0 where none is held."""
    return max((math.prod(weight_shape(network.get_submodule(name))) for name in lazy_layers(network)), default=0)


def _layers(network: nn.Module) -> Iterator[nn.Conv2d | nn.Linear]:
    return (module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear))


def _read(weight: Tensor) -> Tensor:
    wide = weight.to(torch.float32, copy=True)
    release(weight)
    return wide
