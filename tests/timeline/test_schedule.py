"""Schedules of activation grids: nearest look-up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbrush.numerics.affine import QParams
from bitbrush.timeline.schedule import ActivationSchedule, nearest

TIMESTEPS = st.lists(st.integers(0, 1000), min_size=1, max_size=60, unique=True).map(
    lambda values: tuple(sorted(map(float, values), reverse=True))
)


def qparams(scale: float) -> QParams:
    return QParams(scale, 0, 8)


@given(TIMESTEPS, st.one_of(st.integers(-100, 1100).map(float), st.floats(-100, 1100)))
def test_nearest_is_the_first_of_the_nearest(timesteps: tuple[float, ...], timestep: float) -> None:
    distances = [abs(t - timestep) for t in timesteps]
    assert nearest(timesteps, timestep) == distances.index(min(distances))


@given(TIMESTEPS)
def test_calibrated_timesteps_are_exact(timesteps: tuple[float, ...]) -> None:
    schedule = ActivationSchedule.of({t: qparams(t + 1) for t in timesteps})
    assert all(schedule.at(t) == qparams(t + 1) for t in timesteps)


@pytest.mark.parametrize(
    ("timestep", "scale"),
    [
        (2000.0, 900.0),
        (900.0, 900.0),
        (701.0, 900.0),
        (700.0, 900.0),
        (699.9, 500.0),
        (301.0, 500.0),
        (300.0, 500.0),
        (299.0, 100.0),
        (100.0, 100.0),
        (0.0, 100.0),
        (-5.0, 100.0),
    ],
)
def test_between_and_outside_and_ties_go_to_the_noisier(timestep: float, scale: float) -> None:
    schedule = ActivationSchedule.of({500.0: qparams(500.0), 100.0: qparams(100.0), 900.0: qparams(900.0)})
    assert schedule.timesteps == (900.0, 500.0, 100.0)
    assert schedule.at(timestep) == qparams(scale)


def test_static_is_the_same_at_every_step() -> None:
    schedule = ActivationSchedule.static(qparams(2.0))
    assert {schedule.at(t) for t in (-1.0, 0.0, 0.5, 999.0)} == {qparams(2.0)}


@pytest.mark.parametrize(
    ("timesteps", "count", "message"),
    [
        ((), 0, "0 timesteps for 0 qparams"),
        ((1.0,), 2, "1 timesteps for 2 qparams; one each, at least one"),
        ((1.0, 2.0), 2, "must strictly descend"),
        ((2.0, 2.0), 2, "must strictly descend"),
    ],
)
def test_what_is_no_schedule_is_refused(timesteps: tuple[float, ...], count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActivationSchedule(timesteps, (qparams(1.0),) * count)
