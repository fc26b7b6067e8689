"""Conversion of a calibrated step to tensors and back, for the journal of progressive calibration."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bitbrush.numerics.affine import QParams


def step_tensors(names: Sequence[str], all_qparams: Mapping[str, QParams]) -> dict[str, Tensor]:
    """Converts the qparams of all layers, in the order of ``names``, to tensors."""
    return {
        "scale": torch.tensor([all_qparams[name].scale for name in names], dtype=torch.float64),
        "zero_point": torch.tensor([all_qparams[name].zero_point for name in names]),
        "bits": torch.tensor([all_qparams[name].bits for name in names]),
    }


def step_from_tensors(names: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, QParams]:
    """Restores the qparams from the tensors of :func:`step_tensors`."""
    columns = (tensors[key].tolist() for key in ("scale", "zero_point", "bits"))
    rows = zip(names, *columns, strict=True)
    return {name: QParams(scale, int(zero_point), int(bits)) for name, scale, zero_point, bits in rows}
