"""Forward pre-hooks that observe and replace layer inputs, so the network's own code stays as it is."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bitbrush.network.compiling import not_compiled
from bitbrush.numerics.affine import QParams, fake_quantize
from bitbrush.numerics.histogram import Histogram, NonFiniteError


class InputObserver:
    """Collector of a histogram of each layer's input while :meth:`watching`."""

    def __init__(self) -> None:
        self.histograms: dict[str, Histogram] = {}
        self._last: tuple[Tensor, slice, Histogram] | None = None

    @contextmanager
    def watching(self, denoiser: nn.Module, layers: Iterable[str], but_first: Collection[str] = ()) -> Iterator[None]:
        """Observes the inputs of the layers while entered.

        Args:
            denoiser: Network that contains the layers.
            layers: Names of the layers.
            but_first: Those of the layers with token inputs (N, tokens, C) whose first token does not count.

        Raises:
            NonFiniteError: An input contains NaN or infinity; the message names the layer.
        """
        hooks = {name: self._observe(name, slice(1 if name in but_first else 0, None)) for name in layers}
        handles = [denoiser.get_submodule(name).register_forward_pre_hook(hook) for name, hook in hooks.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._last = None

    def histogram(self, name: str) -> Histogram:
        """Returns the histogram of a layer's input.

        Raises:
            ValueError: The denoiser never called the layer.
        """
        if name not in self.histograms:
            raise ValueError(f"layer {name} is never called by the denoiser; exclude it by pattern")
        return self.histograms[name]

    def add(self, other: "InputObserver") -> None:
        """Adds the observations of another observer."""
        for name, histogram in other.histograms.items():
            self._add(name, histogram)

    def _add(self, name: str, histogram: Histogram) -> None:
        total = self.histograms.get(name)
        self.histograms[name] = total.merge(histogram) if total else histogram

    def _observe(self, name: str, tokens: slice) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._add(name, self._histogram_of(args[0], name, tokens))

        return hook

    def _histogram_of(self, x: Tensor, name: str, tokens: slice) -> Histogram:
        # Queries, keys and values read the same tensor, so its histogram is computed once.
        if self._last is not None and self._last[0] is x and self._last[1] == tokens:
            return self._last[2]
        try:
            histogram = Histogram.of(x[:, tokens] if tokens.start else x)
        except NonFiniteError as error:
            raise NonFiniteError(f"layer {name} was given {error}") from None
        self._last = (x, tokens, histogram)
        return histogram


def fake_quantize_input(layer: nn.Module, qparams: Callable[[], QParams | None]) -> RemovableHandle:
    """Makes ``layer`` receive its input fake-quantized with ``qparams()``; unchanged while that is None."""
    return layer.register_forward_pre_hook(_FakeQuantize(qparams))


@dataclass(frozen=True)
class _FakeQuantize:
    """Pre-hook that fake-quantizes; an object and not a closure, so that copies of the layer copy it."""

    qparams: Callable[[], QParams | None]

    @not_compiled
    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        current = self.qparams()
        return None if current is None else (fake_quantize(args[0], current), *args[1:])


def row_dimensions(layer: nn.Module) -> int:
    """Returns how many last dimensions of the input form one token of a linear layer or one image of a convolution."""
    return 3 if isinstance(layer, nn.Conv2d) else 1
