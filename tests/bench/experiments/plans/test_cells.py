"""A cell of `bitbrush plans` comes back from its file as it was."""

from pathlib import Path

import numpy as np
import pytest

from bitbrush.bench.experiments.cell_store import FailedCell
from bitbrush.bench.experiments.plans.cells import Fidelity, PlanCell, read_cell, write_cell
from bitbrush.bench.experiments.plans.plan_list import Plan
from bitbrush.timeline.plan import SamplingPlan

PLANNED = Plan(SamplingPlan(steps=3), "DDIMScheduler", 3)


def pictures(seed: int) -> np.ndarray:
    """Laid out as pipelines leave them, channel by channel."""
    planes = np.random.default_rng(seed).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    made = planes.transpose(0, 2, 3, 1)
    assert not made.flags.c_contiguous
    return made


def fidelity(seed: int) -> Fidelity:
    return Fidelity(np.arange(4.0) + seed, np.arange(4.0)[::-1] + seed, pictures(seed))


@pytest.mark.parametrize("recalibrated", [None, fidelity(2)])
def test_measured(recalibrated: Fidelity | None, tmp_path: Path) -> None:
    cell = PlanCell(PLANNED, fidelity(1), recalibrated, np.array([3, 1]), pictures(3))
    write_cell(cell, tmp_path / "cell")
    read = read_cell(PLANNED, tmp_path / "cell")
    assert isinstance(read, PlanCell)
    np.testing.assert_array_equal(read.full, cell.full)
    np.testing.assert_array_equal(read.worst, cell.worst)
    assert (read.recalibrated is None) == (recalibrated is None)
    for got, put in ((read.artifact, cell.artifact), (read.recalibrated, recalibrated)):
        if got is not None and put is not None:
            for name, values in vars(put).items():
                np.testing.assert_array_equal(getattr(got, name), values)


def test_failed(tmp_path: Path) -> None:
    write_cell(FailedCell("latents are NaN"), tmp_path / "cell")
    assert read_cell(PLANNED, tmp_path / "cell") == FailedCell("latents are NaN")
