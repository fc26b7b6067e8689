"""Metrics from outside the package, which `bench` computes beside its own.

Other packages add metrics with the entry point group ``bitbrush.metrics``, programs with :func:`register_metric`.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.paired import IMAGE_MSE, LATENT_MSE, PSNR, SSIM

GROUP = "bitbrush.metrics"
BUILT_IN = (PSNR, SSIM, IMAGE_MSE, LATENT_MSE, "CLIP score", "KID", "CMMD", "LPIPS", "pairs alike")
"""Names, or beginnings of names, of the figures that `bench` has itself."""


@dataclass(frozen=True)
class _Metric:
    """Parts that both kinds of metric share.

    Args:
        name: Name in tables and files, unit included, e.g. ``"sharpness (dB)"``.
        function: The metric; it is called with batches of images, and with their prompts by a PromptMetric.
        higher_is_better: Whether more is better.
        version: Text to change when the values change; stored values of another version are not used.
    """

    name: str
    function: Callable[..., NDArray[Any]]
    higher_is_better: bool = True
    version: str = "1"

    @property
    def key(self) -> str:
        """Name of the folder that stores the metric's values."""
        return hashlib.sha256(f"{self.name}\n{self.version}".encode()).hexdigest()[:12]

    def values(self, *inputs: Any) -> NDArray[np.float64]:
        """Computes the metric, (N,).

        Raises:
            ValueError: The function returns another shape, or values that are not finite.
        """
        values = np.asarray(self.function(*inputs), dtype=np.float64)
        count = len(inputs[0])
        if values.shape != (count,):
            raise ValueError(
                f"metric {self.name!r} returns shape {values.shape} for {count} images; it needs one value "
                f"per image, ({count},)"
            )
        broken = np.flatnonzero(~np.isfinite(values))
        if broken.size:
            raise ValueError(
                f"metric {self.name!r} returns {values[broken[0]]} for image {broken[0]} of a batch; it needs finite "
                "values"
            )
        return values


class PairedMetric(_Metric):
    """Metric of pairs: ``function(reference, candidate)`` maps two (N, H, W, 3) uint8 batches to values (N,)."""


class ImageMetric(_Metric):
    """Metric of single images: ``function(images)`` maps an (N, H, W, 3) uint8 batch to values (N,)."""

    def of_prompts(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> NDArray[np.float64]:
        """Computes the metric of images of these prompts, (N,).

        Raises:
            ValueError: The function returns another shape, or values that are not finite.
        """
        return self.values(images)


class PromptMetric(ImageMetric):
    """Metric of images and their prompts: ``function(images, prompts)`` maps both, of length N, to values (N,)."""

    def of_prompts(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> NDArray[np.float64]:
        """Computes the metric of images of these prompts, (N,).

        Raises:
            ValueError: The function returns another shape, or values that are not finite.
        """
        return self.values(images, prompts)


Metric: TypeAlias = PairedMetric | ImageMetric


class Metrics(Mapping[str, Metric]):
    """Mapping of the metrics of installed packages, then those registered by the running program, by name."""

    def __init__(self) -> None:
        self._places: list[EntryPoint] = list(entry_points(group=GROUP))
        self._metrics: dict[str, Metric] = {}

    def __getitem__(self, name: str) -> Metric:
        return self._loaded()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded())

    def __len__(self) -> int:
        return len(self._loaded())

    def register(self, metric: Metric) -> None:
        """Adds a metric to the running program.

        Raises:
            ValueError: The metric is of no such kind, or its name is taken.
        """
        self._add(self._loaded(), metric)

    def _loaded(self) -> dict[str, Metric]:
        while self._places:
            self._add(self._metrics, self._places[0].load())
            self._places.pop(0)
        return self._metrics

    def _add(self, metrics: dict[str, Metric], metric: Metric) -> None:
        if not isinstance(metric, PairedMetric | ImageMetric):
            raise ValueError(
                f"metric is a {type(metric).__name__}; give a PairedMetric, an ImageMetric or a PromptMetric"
            )
        if metric.name.startswith(BUILT_IN) or metrics.get(metric.name, metric) != metric:
            raise ValueError(f"metric {metric.name!r} exists already; give yours another name")
        metrics[metric.name] = metric


METRICS = Metrics()


def register_metric(metric: Metric) -> None:
    """Registers a metric for the benchmarks of this process.

    `bench` shows it in its tables, ``results.json`` and ``results.csv``, with a bootstrap interval over images. For an
    :class:`ImageMetric` it adds the paired difference from full precision.

    Args:
        metric: :class:`PairedMetric`, :class:`ImageMetric` or :class:`PromptMetric` with an unused name.

    Raises:
        ValueError: It is none of these, or its name is taken.
    """
    METRICS.register(metric)
