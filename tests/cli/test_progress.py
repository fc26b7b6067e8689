"""Progress: what each phase still takes, and all that are planned."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.console import Console

from bitbrush.cli import progress
from bitbrush.cli.progress import Shown, shown
from bitbrush.session.progress import PlannedWork, planned, silent

Pass = Callable[[float], None]


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Pass:
    """Lets seconds pass."""
    now = 0.0

    def pass_by(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    return pass_by


def test_lines_tell_what_is_left(passing: Pass, capsys: pytest.CaptureFixture[str]) -> None:
    with shown("calibrating", 5) as advance:
        for _ in range(5):
            passing(6)
            advance()
    assert capsys.readouterr().err.splitlines() == [
        "calibrating: 2/5, 12 s, 18 s left",
        "calibrating: 4/5, 24 s, 6 s left",
        "calibrating: 5/5, 30 s, 0 s left",
    ]


def test_what_is_quick_says_nothing(passing: Pass, capsys: pytest.CaptureFixture[str]) -> None:
    for total in (3, 0):
        with shown("calibrating", total) as advance:
            for _ in range(total):
                passing(1)
                advance()
    assert not capsys.readouterr().err


PLAN = [PlannedWork("calls", 4, 1), PlannedWork("probes", 2, 10), PlannedWork("blocks", 3, 20)]


def work(show: Shown, passing: Pass, title: str, pieces: int, seconds: float) -> None:
    with show(title, pieces) as advance:
        for _ in range(pieces):
            passing(seconds)
            advance()


def test_planned_phases_are_numbered_and_their_costs_count(passing: Pass, capsys: pytest.CaptureFixture[str]) -> None:
    """A unit of cost takes 12 s first; then probes show that it takes less: 48 s and 200 s for 24 units."""
    show = shown.planned(PLAN)
    work(show, passing, "calls", 4, 12)
    work(show, passing, "probes", 2, 100)
    passing(1000)  # what lies between phases is none of theirs
    work(show, passing, "blocks", 3, 200)
    left_after_calls = [(4 - done) * 12 + 12 * 80 for done in range(1, 5)]
    assert capsys.readouterr().err.splitlines() == [
        *(
            f"1 of 3, calls: {done}/4, {12 * done} s, {12 * (4 - done)} s left, {left / 60:.0f} min left in all"
            for done, left in enumerate(left_after_calls, 1)
        ),
        f"2 of 3, probes: 1/2, 2 min, 2 min left, {(100 + 148 / 14 * 60) / 60:.0f} min left in all",
        f"2 of 3, probes: 2/2, 3 min, 0 s left, {248 / 24 * 60 / 60:.0f} min left in all",
        "3 of 3, blocks: 1/3, 3 min, 7 min left, 7 min left in all",
        "3 of 3, blocks: 2/3, 7 min, 3 min left, 3 min left in all",
        "3 of 3, blocks: 3/3, 10 min, 0 s left, 0 s left in all",
    ]


def test_phases_that_are_passed_over_or_not_planned(passing: Pass, capsys: pytest.CaptureFixture[str]) -> None:
    """As those of a run that was taken up; an unplanned one in between changes nothing."""
    show = shown.planned(PLAN)
    work(show, passing, "probes", 1, 20)
    work(show, passing, "inspecting", 1, 5000)
    work(show, passing, "blocks", 1, 40)
    work(show, passing, "blocks", 1, 40)
    assert capsys.readouterr().err.splitlines() == [
        "2 of 3, probes: 1/1, 20 s, 0 s left, 2 min left in all",
        "inspecting: 1/1, 83 min, 0 s left",
        "3 of 3, blocks: 1/1, 40 s, 0 s left, 0 s left in all",
        "blocks: 1/1, 40 s, 0 s left",
    ]


def test_a_title_comes_again(passing: Pass, capsys: pytest.CaptureFixture[str]) -> None:
    show = Shown().planned([PlannedWork("generating", 1, 1)] * 3)
    for _ in range(3):
        work(show, passing, "generating", 1, 20)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"{number} of 3, generating" for number in (1, 2, 3)]
    assert [line.rpartition(", ")[2] for line in lines] == ["40 s left in all", "20 s left in all", "0 s left in all"]


def test_a_bar_on_a_terminal_tells_the_same(passing: Pass, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(force_terminal=True, width=120, record=True, stderr=True)
    monkeypatch.setattr(progress, "err", lambda: terminal)
    show = shown.planned(PLAN)
    work(show, passing, "calls", 2, 30)
    work(show, passing, "probes", 0, 1)
    text = terminal.export_text()
    assert "1 of 3, calls" in text
    assert "2/2" in text
    assert "0 s left, 40 min left in all" in text
    assert "probes" not in text


@pytest.mark.parametrize("pieces", [1, 2, 3, 7, 5000])
def test_the_end_is_no_surprise(passing: Pass, capsys: pytest.CaptureFixture[str], pieces: int) -> None:
    """The time left falls to nothing with the last piece, however many there are."""
    with shown("work", pieces) as advance:
        for _ in range(pieces):
            passing(11)
            advance()
    assert capsys.readouterr().err.splitlines()[-1].endswith(", 0 s left")


def test_a_plan_within_another_is_part_of_it() -> None:
    whole = shown.planned(PLAN)
    assert whole.planned(PLAN[:2]) is whole
    assert planned(whole, lambda: PLAN[1:]) is whole


def test_one_phase_needs_no_number() -> None:
    assert shown.planned(PLAN[:1]) is shown


def test_what_cannot_plan_is_not_asked_to() -> None:
    def never() -> list[PlannedWork]:
        raise AssertionError("asked")

    assert planned(silent, never) is silent
