"""Conversion of a calibrated step to tensors and back, for the journal of progressive calibration."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from bitbrush.network.inputs import InputObserver
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.histogram import Histogram


def step_tensors(
    names: Sequence[str], observer: InputObserver, all_qparams: Mapping[str, QParams]
) -> dict[str, Tensor]:
    """Converts qparams and histograms of all layers, in the order of ``names``, to tensors.

    The histograms are stored because a later call at the same timestep adds to them.
    """
    histograms = [observer.histogram(name) for name in names]
    return {
        "low": torch.tensor([histogram.low for histogram in histograms], dtype=torch.float64),
        "high": torch.tensor([histogram.high for histogram in histograms], dtype=torch.float64),
        "exponent": torch.tensor([histogram.exponent for histogram in histograms]),
        "counts": torch.stack([histogram.counts for histogram in histograms]),
        "scale": torch.tensor([all_qparams[name].scale for name in names], dtype=torch.float64),
        "zero_point": torch.tensor([all_qparams[name].zero_point for name in names]),
        "bits": torch.tensor([all_qparams[name].bits for name in names]),
    }


def step_from_tensors(names: Sequence[str], tensors: Mapping[str, Tensor]) -> tuple[InputObserver, dict[str, QParams]]:
    """Restores histograms and qparams from the tensors of :func:`step_tensors`."""

    def columns(*keys: str) -> Iterator[tuple[float, ...]]:
        return zip(*(tensors[key].tolist() for key in keys), strict=True)

    observer = InputObserver()
    rows = zip(columns("low", "high", "exponent"), tensors["counts"], strict=True)
    observer.histograms = {
        name: Histogram(low, high, int(exponent), counts)
        for name, ((low, high, exponent), counts) in zip(names, rows, strict=True)
    }
    all_qparams = zip(names, columns("scale", "zero_point", "bits"), strict=True)
    return observer, {name: QParams(scale, int(zero), int(bits)) for name, (scale, zero, bits) in all_qparams}
