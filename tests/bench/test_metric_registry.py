"""Metrics from outside the package: registered by call and by entry point, refused by name."""

from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest

from bitbrush.bench.metrics import registry
from bitbrush.bench.metrics.registry import ImageMetric, Metrics, PairedMetric

IMAGES = np.zeros((3, 4, 4, 3), np.uint8)
LIGHT = ImageMetric("light", lambda images: images.mean((1, 2, 3)))


def test_by_call() -> None:
    metrics = Metrics()
    metrics.register(LIGHT)
    metrics.register(LIGHT)  # the same once more, as of a module that is imported again
    assert dict(metrics) == {"light": LIGHT}
    assert metrics["light"].values(IMAGES).tolist() == [0, 0, 0]


def test_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("light", f"{__name__}:LIGHT", "bitbrush.metrics")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == point.group else [])
    monkeypatch.setattr(EntryPoint, "load", lambda _: LIGHT)  # this file is no installed module
    assert list(Metrics()) == ["light"]


@pytest.mark.parametrize("name", ["light", "SSIM", "CLIP score (mine)", "latent MSE"])
def test_names_are_taken_once(name: str) -> None:
    metrics = Metrics()
    metrics.register(LIGHT)
    with pytest.raises(ValueError, match="exists already"):
        metrics.register(PairedMetric(name, lambda a, b: a))


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.zeros(2), r"returns shape \(2,\) for 3 images"), (np.array([0, np.nan, 1]), "returns nan for image 1")],
)
def test_wrong_values_are_named(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"metric 'bad' {message}"):
        ImageMetric("bad", lambda images: values).values(IMAGES)


def test_what_is_no_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="metric is a function; give a PairedMetric"):
        Metrics().register(lambda images: images)  # type: ignore[arg-type]


def test_another_version_is_stored_apart() -> None:
    assert ImageMetric("light", LIGHT.function, version="2").key != LIGHT.key
