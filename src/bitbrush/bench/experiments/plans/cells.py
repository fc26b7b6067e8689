"""Measurements of one plan, and the file that stores them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.experiments.plans.plan_list import Plan
from bitbrush.bench.images.array_file import damaged, read_arrays, write_arrays

WORST = 2
"""So many pairs of every cell are kept for people to see: those that differ most."""


@dataclass(frozen=True)
class Fidelity:
    """How near a pipeline comes to full precision, picture by picture: ``(N,)`` each, PSNR in dB.

    ``pictures`` ``(WORST, H, W, 3)`` uint8: of the cell's worst pairs.
    """

    latent_mse: NDArray[np.float64]
    psnr: NDArray[np.float64]
    pictures: NDArray[np.uint8]


@dataclass(frozen=True)
class PlanCell:
    """``recalibrated``: the artifact with activations recalibrated for this plan, None where that was left out.

    ``worst`` ``(WORST,)``: the artifact's pairs with the largest latent MSE, largest first; ``full`` their
    full-precision pictures. ``is_calibrated``: this is the plan that the artifact is calibrated for.
    """

    planned: Plan
    is_calibrated: bool
    artifact: Fidelity
    recalibrated: Fidelity | None
    worst: NDArray[np.int64]
    full: NDArray[np.uint8]


@dataclass(frozen=True)
class FailedCell:
    """A plan that could not be measured, and why."""

    planned: Plan
    is_calibrated: bool
    problem: str


def write_cell(cell: PlanCell | FailedCell, path: Path) -> None:
    """All of it, or nothing."""
    arrays: dict[str, NDArray[np.generic]] = {}
    metadata = {}
    match cell:
        case FailedCell():
            metadata["problem"] = cell.problem
        case PlanCell():
            arrays = {"worst": cell.worst, "full": cell.full}
            for name, one in (("artifact", cell.artifact), ("recalibrated", cell.recalibrated)):
                if one is not None:
                    arrays |= {f"{name}.{key}": value for key, value in vars(one).items()}
    write_arrays(arrays, metadata, path)


def read_cell(planned: Plan, path: Path, *, is_calibrated: bool) -> PlanCell | FailedCell:
    """Raises ValueError for a damaged file."""
    arrays, facts = read_arrays(path)
    try:
        if "problem" in facts:
            return FailedCell(planned, is_calibrated, facts["problem"])
        return PlanCell(
            planned=planned,
            is_calibrated=is_calibrated,
            artifact=_fidelity(arrays, "artifact"),
            recalibrated=_fidelity(arrays, "recalibrated") if "recalibrated.psnr" in arrays else None,
            worst=arrays["worst"],
            full=arrays["full"],
        )
    except (KeyError, TypeError) as error:
        raise damaged(path, error) from error


def _fidelity(arrays: dict[str, NDArray[np.generic]], name: str) -> Fidelity:
    return Fidelity(**{key: arrays[f"{name}.{key}"] for key in Fidelity.__dataclass_fields__})  # type: ignore[arg-type]
