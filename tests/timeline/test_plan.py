"""Sampling plans, and exactly which of their steps are relaxed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbrush.calibration.relaxing import Relaxation, average_bits, bits_at
from bitbrush.timeline.plan import SamplingPlan

STEPS = st.integers(1, 200)
HUNDREDTHS = st.lists(st.integers(0, 100), min_size=2, max_size=2, unique=True).map(sorted)


def descending(steps: int) -> list[float]:
    """Timesteps of a plan, the noisiest first."""
    return [1.0 + step * (1000 // steps) for step in reversed(range(steps))]


def pndm_calls(steps: int) -> list[float]:
    """The second timestep is run twice."""
    timesteps = descending(steps)
    return [timesteps[0], timesteps[1], *timesteps[1:]]


@given(STEPS, HUNDREDTHS)
def test_exactly_the_rounded_share_is_relaxed(steps: int, ends: list[int]) -> None:
    start, end = ends
    relaxed = Relaxation(start / 100, end / 100, 10).timesteps(descending(steps))
    assert len(relaxed) == ((end - start) * steps + 50) // 100  # rounded half up, in integers


@given(STEPS, HUNDREDTHS)
def test_relaxed_steps_are_consecutive_and_where_the_interval_is(steps: int, ends: list[int]) -> None:
    start, end = (percent / 100 for percent in ends)
    timesteps = descending(steps)
    indices = sorted(timesteps.index(t) for t in Relaxation(start, end, 10).timesteps(timesteps))
    assert indices == list(range(indices[0], indices[0] + len(indices))) if indices else True
    assert all(start * steps - 1 <= index <= end * steps for index in indices)


@given(STEPS, st.integers(1, 99))
def test_both_ends_relax_as_many_steps_and_reach_the_end(steps: int, percent: int) -> None:
    timesteps = descending(steps)
    tau = percent / 100
    first, last = (Relaxation(a, b, 10).timesteps(timesteps) for a, b in ((0.0, tau), (1 - tau, 1.0)))
    assert len(first) == len(last)
    assert first == set(timesteps[: len(first)])
    assert last == set(timesteps[len(timesteps) - len(last) :])


@pytest.mark.parametrize("steps", [10, 20, 50, 100])
def test_thirds_leave_no_gap_and_no_overlap(steps: int) -> None:
    timesteps = descending(steps)
    thirds = [Relaxation(a, b, 10).timesteps(timesteps) for a, b in ((0, 0.3), (0.3, 0.6), (0.6, 1))]
    assert sum(map(len, thirds)) == steps
    assert frozenset().union(*thirds) == set(timesteps)


@pytest.mark.parametrize("interval", ["0:0.2@10", "0.8:1.0@10", "0.4:0.6@10"])
def test_a_fifth_of_fifty_is_ten(interval: str) -> None:
    calls = pndm_calls(50)
    assert len(calls) == 51
    assert len(Relaxation.parse(interval).timesteps(calls)) == 10


def test_all_steps() -> None:
    assert Relaxation(0, 1, 10).timesteps(descending(7)) == set(descending(7))


def test_order_and_repetitions_do_not_matter() -> None:
    relaxation = Relaxation(0.5, 1.0, 10)
    assert relaxation.timesteps([5, 1, 3, 3, 7, 5]) == relaxation.timesteps([7, 5, 3, 1]) == {3, 1}


def test_the_end_is_relaxed_where_timesteps_ascend() -> None:
    """Z-Image and Lumina 2 count from 0, the noisiest, towards 1."""
    assert Relaxation(0.75, 1.0, 10).timesteps([0.0, 0.25, 0.25, 0.5, 0.9]) == {0.9}


@pytest.mark.parametrize(
    ("relaxation", "expected"),
    [
        (None, 8.0),
        (Relaxation(0.8, 1.0, 10), (41 * 8 + 10 * 10) / 51),
        (Relaxation(0.0, 0.2, 10), (40 * 8 + 11 * 10) / 51),  # the call that is made twice is relaxed twice
        (Relaxation(0.4, 0.6, 16), (41 * 8 + 10 * 16) / 51),
        (Relaxation(0.0, 1.0, 10), 10.0),
    ],
)
def test_average_bits_over_all_calls_of_pndm(relaxation: Relaxation | None, expected: float) -> None:
    assert average_bits(8, relaxation, pndm_calls(50)) == pytest.approx(expected, rel=1e-12)


def test_bits_at_every_timestep() -> None:
    assert bits_at(6, Relaxation(0.5, 1.0, 8), [4.0, 3.0, 3.0, 2.0, 1.0]) == {4.0: 6, 3.0: 6, 2.0: 8, 1.0: 8}
    assert bits_at(6, None, [2.0, 1.0]) == {2.0: 6, 1.0: 6}


@given(HUNDREDTHS, st.integers(2, 16))
def test_text_round_trip(ends: list[int], bits: int) -> None:
    relaxation = Relaxation(ends[0] / 100, ends[1] / 100, bits)
    assert Relaxation.parse(str(relaxation)) == relaxation


@given(st.floats(0, 0.5), st.floats(0.5, 1, exclude_min=True))
def test_text_round_trip_keeps_every_digit(start: float, end: float) -> None:
    assert Relaxation.parse(str(Relaxation(start, end, 10))) == Relaxation(start, end, 10)


def test_text_is_read_leniently_and_written_shortly() -> None:
    assert Relaxation.parse(" 0.8 : 1 @ 10 ") == Relaxation(0.8, 1.0, 10)
    assert Relaxation.parse("8e-1:1.0@10") == Relaxation(0.8, 1.0, 10)
    assert str(Relaxation(0.8, 1.0, 10)) == "0.8:1@10"
    assert str(Relaxation(0, 0.25, 8)) == "0:0.25@8"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0.8",
        "0.8:1.0",
        "0.8-1.0@10",
        "0.8:1.0@",
        "0.8:1.0@ten",
        "0.8:1.0@-10",
        "a:b@10",
        "nan:1@10",
        "1.2.3:1@10",
        "0.8:1.0@10@10",
        "e:1@10",
        "0.8:1.0@10.5",
        "inf:1@10",
    ],
)
def test_what_is_no_relaxation_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected START:END@BITS, e\.g\. 0\.8:1\.0@10") as caught:
        Relaxation.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.0:0.8@10", "relaxed interval is 1:0.8; .* 0 <= start < end <= 1"),
        ("0.5:0.5@10", "relaxed interval is 0.5:0.5"),
        ("-0.1:0.5@10", "relaxed interval is -0.1:0.5"),
        ("0.5:1.1@10", "relaxed interval is 0.5:1.1"),
        ("0:1e999@10", "relaxed interval is 0:inf"),
        ("0.8:1.0@1", "relaxed bits is 1; supported are 2 to 16"),
        ("0.8:1.0@17", "relaxed bits is 17"),
    ],
)
def test_impossible_relaxations_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Relaxation.parse(text)


@pytest.mark.parametrize(
    ("steps", "guidance_scale", "message"),
    [
        (0, 7.5, "steps is 0; at least 1"),
        (-3, 7.5, "steps is -3"),
        (50, -0.5, "guidance_scale is -0.5"),
        (50, math.nan, "guidance_scale is nan"),
        (50, math.inf, "guidance_scale is inf"),
    ],
)
def test_impossible_plans_are_refused(steps: int, guidance_scale: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingPlan(steps, guidance_scale)
