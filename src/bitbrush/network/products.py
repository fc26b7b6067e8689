"""Multiplications of layers, counted while a denoiser runs."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from bitbrush.network.lazy_weights import weight_shape


@contextmanager
def counting_products(denoiser: nn.Module, products: dict[str, int]) -> Iterator[None]:
    """Adds the multiplications of each layer's calls to ``products``, by layer name, while entered."""

    def count(name: str, layer: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
        filters, *columns = weight_shape(layer)
        products[name] += output.numel() // filters * filters * math.prod(columns)

    with ExitStack() as stack:
        for name in products:
            stack.callback(denoiser.get_submodule(name).register_forward_hook(partial(count, name)).remove)
        yield
