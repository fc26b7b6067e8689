"""Weights stored narrow (integers, half precision, or on disk) and dequantized for each call of their layer.

A layer with such a weight is still a Conv2d or Linear whose ``weight`` is float32: access dequantizes it. Only
``state_dict()`` and ``parameters()`` omit it; :func:`state_readers` includes it.
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
    """Weight that ``read`` returns in float32, in newly allocated memory."""

    read: Callable[[], Tensor]

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self  # immutable, so copies of a network share it


class LazyLayer(Extension):
    """Extension of a Conv2d or Linear; a weight parameter that is set later takes precedence over the lazy weight."""

    lazy_weight: LazyWeight
    _parameters: dict[str, nn.Parameter | None]

    @property
    def weight(self) -> Tensor:
        """Weight in float32: the parameter if there is one, else the lazy weight, dequantized."""
        parameter = self._parameters["weight"]
        return self.lazy_weight.read() if parameter is None else parameter


def set_lazy_weight(layer: nn.Module, weight: LazyWeight) -> None:
    """Replaces the weight parameter of a Conv2d or Linear by ``weight``."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    extend_(layer, LazyLayer)
    layer.register_parameter("weight", None)
    object.__setattr__(layer, "lazy_weight", weight)


def set_quantized_weight(layer: nn.Module, weight: QuantizedWeight, bias: Tensor | None) -> None:
    """Makes the layer compute with the dequantized integers; if ``bias`` is None, it keeps its own."""
    set_lazy_weight(layer, LazyWeight(weight.dequantize))
    if bias is not None and layer.bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)


def device_of(network: nn.Module) -> torch.device:
    """Returns the device of the network's first parameter or buffer that has values; the CPU if none has."""
    values = itertools.chain(network.parameters(), network.buffers())
    return next((tensor.device for tensor in values if not tensor.is_meta), CPU)


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """Returns the weight's shape of a Conv2d or Linear without dequantizing it."""
    if isinstance(layer, nn.Conv2d):
        return (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    assert isinstance(layer, nn.Linear)
    return (layer.out_features, layer.in_features)


def show_widths_(module: nn.Module, layer: nn.Module) -> None:
    """Copies the in/out feature counts to the wrapper; SDXL reads ``unet.add_embedding.linear_1.in_features``."""
    named = ("in_channels", "out_channels") if isinstance(layer, nn.Conv2d) else ("in_features", "out_features")
    for name in named:
        setattr(module, name, getattr(layer, name))


def shallow_copy(network: nn.Module) -> nn.Module:
    """Copies the modules and shares every tensor; tensors set on one network do not affect the other."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False) for parameter in network.parameters()
    }
    memo |= {id(buffer): buffer.detach() for buffer in network.buffers()}
    return copy.deepcopy(network, memo)


def in_float32(network: nn.Module) -> nn.Module:
    """Returns the network itself if all of it is float32; else a shallow copy that computes in float32.

    Conv2d and Linear weights in half precision stay so and are converted for each call, which is exact.
    """
    narrow = any(tensor.dtype in HALF for tensor in (*network.parameters(), *network.buffers()))
    if not narrow:
        return network
    wide = shallow_copy(network)
    for layer in _layers(wide):
        if layer.weight.dtype in HALF:
            set_lazy_weight(layer, LazyWeight(layer.weight.detach().float))
    return wide.float()


def layer_bytes(network: nn.Module) -> int:
    """Returns the bytes of the weights of all Conv2d and Linear layers."""
    return sum(int(layer.weight.nbytes) for layer in _layers(network))


def offload_weights(network: nn.Module, offload: Offload) -> None:
    """Offloads the weight of every Conv2d and Linear; each call reads it from disk. The rest becomes float32."""
    for layer in _layers(network):
        weight = offload.put(layer.weight.detach())
        if not is_offloaded(weight):
            weight = weight.clone()  # a view into a checkpoint's mapping would keep all of the mapping
        set_lazy_weight(layer, LazyWeight(partial(_read, weight)))
    network.float()


def materialized(network: nn.Module) -> nn.Module:
    """Returns the network itself if it has no lazy weights; else a shallow copy with float32 parameters instead."""
    return materialize_(shallow_copy(network)) if lazy_layers(network) else network


def materialize_(network: nn.Module) -> nn.Module:
    """Converts the lazy weights of the network to float32 parameters, in place."""
    for name, layer in lazy_layers(network).items():
        network.get_submodule(name).register_parameter(
            "weight", nn.Parameter(layer.lazy_weight.read(), requires_grad=False)
        )
    return network


def lazy_layers(network: nn.Module) -> dict[str, LazyLayer]:
    """Returns the layers with lazy weights, by name."""
    candidates = {name: module for name, module in network.named_modules() if isinstance(module, LazyLayer)}
    return {name: module for name, module in candidates.items() if module._parameters.get("weight", module) is None}


def state_readers(network: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Returns ``state_dict()`` with the lazy weights included, as functions that read each tensor."""
    readers: dict[str, Callable[[], Tensor]] = {key: tensor.detach for key, tensor in network.state_dict().items()}
    return readers | {f"{name}.weight": layer.lazy_weight.read for name, layer in lazy_layers(network).items()}


def count_lazy_weights(network: nn.Module) -> int:
    """Counts the elements of all lazy weights."""
    return sum(math.prod(weight_shape(network.get_submodule(name))) for name in lazy_layers(network))


def largest_lazy_weight(network: nn.Module) -> int:
    """Counts the elements of the largest lazy weight; 0 if there is none."""
    return max((math.prod(weight_shape(network.get_submodule(name))) for name in lazy_layers(network)), default=0)


def _layers(network: nn.Module) -> Iterator[nn.Conv2d | nn.Linear]:
    return (module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear))


def _read(weight: Tensor) -> Tensor:
    wide = weight.to(torch.float32, copy=True)
    release(weight)
    return wide
