"""Measurements of one plan, and the file that stores them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.experiments import cell_store
from bitbrush.bench.experiments.cell_store import FailedCell, StoredCell, damaged
from bitbrush.bench.experiments.plans.plan_list import Plan

WORST = 2
"""Number of pairs of a cell that are stored for the page: those that differ most."""
_PAIRS, _ARTIFACT, _RECALIBRATED = "pairs", "artifact", "recalibrated"


@dataclass(frozen=True)
class Fidelity:
    """Closeness of a pipeline to full precision.

    Args:
        latent_mse: Latent MSE of each image, (N,).
        psnr: PSNR of each image in dB, (N,).
        images: Images of the cell's worst pairs, (WORST, H, W, 3) uint8.
    """

    latent_mse: NDArray[np.float64]
    psnr: NDArray[np.float64]
    images: NDArray[np.uint8]


@dataclass(frozen=True)
class PlanCell:
    """Measurements of an artifact under one plan.

    Args:
        planned: The plan.
        artifact: Fidelity of the artifact.
        recalibrated: Fidelity of the artifact recalibrated for this plan; None where that was left out.
        worst: Indices of the artifact's pairs with the largest latent MSE, largest first, (WORST,).
        full: Full-precision images of these pairs, (WORST, H, W, 3) uint8.
    """

    planned: Plan
    artifact: Fidelity
    recalibrated: Fidelity | None
    worst: NDArray[np.int64]
    full: NDArray[np.uint8]


def write_cell(cell: PlanCell | FailedCell, path: Path) -> None:
    """Writes a cell completely or not at all."""
    if isinstance(cell, FailedCell):
        cell_store.write_cell(cell, path)
        return
    groups = {_PAIRS: {"worst": cell.worst, "full": cell.full}, _ARTIFACT: vars(cell.artifact)}
    if cell.recalibrated is not None:
        groups[_RECALIBRATED] = vars(cell.recalibrated)
    cell_store.write_cell(StoredCell(groups), path)


def read_cell(planned: Plan, path: Path) -> PlanCell | FailedCell:
    """Reads the cell of a plan.

    Raises:
        ValueError: The file is damaged.
    """
    stored = cell_store.read_cell(path)
    if isinstance(stored, FailedCell):
        return stored
    groups = stored.groups
    try:
        artifact = Fidelity(**groups[_ARTIFACT])
        recalibrated = Fidelity(**groups[_RECALIBRATED]) if _RECALIBRATED in groups else None
        return PlanCell(planned, artifact, recalibrated, groups[_PAIRS]["worst"], groups[_PAIRS]["full"])
    except (KeyError, TypeError) as error:
        raise damaged(path, error) from error
