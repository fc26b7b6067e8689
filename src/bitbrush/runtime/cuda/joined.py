"""Linear layers of one and the same input as one product: fewer and larger launches, on which a card idles less."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.network.first_token import answers_first_token
from bitbrush.runtime.cuda.layers import IntegerLinear
from bitbrush.runtime.cuda.weights import stack
from bitbrush.runtime.fused import Consumer, OneByOne, Products, Quantize


def join(layers: Sequence[IntegerLinear]) -> IntegerLinear:
    """The layers' outputs side by side, as one layer; from now on the layers' own weights are parts of its.

    All have one grid and input width, and weights of one layout.
    """
    whole = stack([one.weights for one in layers])
    begin = 0
    for one in layers:
        end = begin + one.out_features
        one.share(whole.data[begin:end])
        begin = end
    return layers[0].with_weights(whole)


def together(consumers: Sequence[Consumer]) -> Products:
    """Products of one input: one where all have one grid and nothing beside them, else one after the other."""
    layers: list[Any] = [one.layer for one in consumers]
    if any(one.branch for one in consumers) or len({_kind(one) for one in layers}) > 1:
        return OneByOne(consumers)
    return _Joined(join(layers), [one.out_features for one in layers])


@dataclass(frozen=True)
class _Joined:
    """Products of layers by the layer that they were joined to."""

    layer: IntegerLinear
    sizes: list[int]

    def __call__(self, quantize: Quantize, dtype: torch.dtype) -> Sequence[Tensor]:
        parts: Sequence[Tensor] = self.layer.multiply(quantize(self.layer), dtype).split(self.sizes, -1)
        return parts


class AtOnce:
    """Layers that read one and the same tensor in a denoiser call: the first that is asked has all computed.

    ``before``: of the tensor, what the layers are given. ``dtype``: of their outputs, None: of what they are given.
    """

    def __init__(self, before: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> None:
        self._before, self._dtype = before, dtype
        self._layers: list[IntegerLinear] = []
        self._groups: list[tuple[IntegerLinear, list[int]]] = []
        self._input: Tensor | None = None
        self._outputs: list[Tensor] = []

    def add(self, layer: nn.Module) -> Callable[[Tensor], Tensor]:
        """The layer as a function of the tensor, once :meth:`join` was called.

        What has a branch, or an answer of its own to the first token, is computed by itself.
        """
        if not isinstance(layer, IntegerLinear) or answers_first_token(layer):
            return partial(self._alone, layer)
        index = len(self._layers)
        self._layers.append(layer)
        return partial(self._one_of_all, index)

    def join(self) -> None:
        """Once all are added."""
        kinds: dict[Any, list[int]] = {}
        for index, layer in enumerate(self._layers):
            kinds.setdefault(_kind(layer), []).append(index)
        self._groups = [(join([self._layers[i] for i in members]), members) for members in kinds.values()]

    def forget(self) -> None:
        """At the end of a call: the next one may have the same tensor with other values, and another step."""
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
    """Layers of one kind can be joined."""
    return layer.qparams, layer.in_features, layer.weights.zero_points is None
