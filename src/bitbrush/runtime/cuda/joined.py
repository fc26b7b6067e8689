"""Linear layers of one input joined to one product: fewer and larger launches leave a GPU idle less."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.network.first_token import answers_first_token
from bitbrush.runtime.consumers import (
    Consumer,
    Input,
    OneByOne,
    Products,
    once,
)
from bitbrush.runtime.cuda.layers import IntegerLinear
from bitbrush.runtime.cuda.weights import stack


def join(layers: Sequence[IntegerLinear]) -> IntegerLinear:
    """Joins layers to one whose output concatenates theirs; their own weights become views of its weights.

    All layers must have equal quantization parameters, input width and weight layout.
    """
    whole = stack([one.weights for one in layers])
    begin = 0
    for one in layers:
        end = begin + one.out_features
        one.share(whole.data[begin:end])
        begin = end
    return layers[0].with_weights(whole)


def together(consumers: Sequence[Consumer]) -> Products:
    """Builds the products of one input: joined if all qparams are equal and no branch exists, else one by one."""
    layers: list[Any] = [one.layer for one in consumers]
    if any(one.branch for one in consumers) or len({_kind(one) for one in layers}) > 1:
        return OneByOne(consumers)
    return _Joined(join(layers), [one.out_features for one in layers], consumers)


@dataclass(frozen=True)
class _Joined:
    """Products of the consumers' layers, computed by the layer that joins them."""

    layer: IntegerLinear
    sizes: list[int]
    consumers: Sequence[Consumer]

    def __call__(self, x: Input, dtype: torch.dtype) -> Sequence[Tensor]:
        parts: Sequence[Tensor] = self.layer.multiply(x.quantize(self.layer), dtype).split(self.sizes, -1)
        exact = once(x.exact)
        return [one.adapt(part, exact) for one, part in zip(self.consumers, parts, strict=True)]


class AtOnce:
    """Layers that read the same tensor in a denoiser call; the first call of one computes all.

    Args:
        before: Prologue that maps the tensor to the layers' input.
        dtype: Dtype of the outputs; None: that of the layers' input.
    """

    def __init__(self, before: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> None:
        self._before, self._dtype = before, dtype
        self._layers: list[IntegerLinear] = []
        self._groups: list[tuple[IntegerLinear, list[int]]] = []
        self._input: Tensor | None = None
        self._outputs: list[Tensor] = []

    def add(self, layer: nn.Module) -> Callable[[Tensor], Tensor]:
        """Adds a layer and returns it as a function of the tensor, callable after :meth:`join`.

        A layer with a branch, or with a separate output for the first token, is computed by itself.
        """
        if not isinstance(layer, IntegerLinear) or answers_first_token(layer):
            return partial(self._alone, layer)
        index = len(self._layers)
        self._layers.append(layer)
        return partial(self._one_of_all, index)

    def join(self) -> None:
        """Joins the layers after all are added."""
        kinds: dict[Any, list[int]] = {}
        for index, layer in enumerate(self._layers):
            kinds.setdefault(_kind(layer), []).append(index)
        self._groups = [(join([self._layers[i] for i in members]), members) for members in kinds.values()]

    def forget(self) -> None:
        """Drops outputs at the end of a call: the next call may reuse the tensor with other values, at another step."""
        self._input, self._outputs = None, []

    def _alone(self, layer: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = layer(self._before(x))
        return y if self._dtype is None else y.to(self._dtype)

    def _one_of_all(self, index: int, x: Tensor) -> Tensor:
        return self._all(x)[index]

    def _all(self, x: Tensor) -> list[Tensor]:
        if self._input is not x:
            self._input, self._outputs = x, self._computed(self._before(x))
        return self._outputs

    def _computed(self, x: Tensor) -> list[Tensor]:
        outputs = [x] * len(self._layers)
        for joined, members in self._groups:
            y = joined.multiply(joined.quantize(x), self._dtype or x.dtype)
            parts = y.split([self._layers[i].out_features for i in members], -1)
            for index, part in zip(members, parts, strict=True):
                outputs[index] = part
        return outputs


def _kind(layer: IntegerLinear) -> tuple[Any, ...]:
    """Key of layers that can be joined."""
    return layer.qparams, layer.in_features, layer.weights.zero_points is None
