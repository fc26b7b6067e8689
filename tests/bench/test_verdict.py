"""The verdict follows its rule, from each kind of evidence."""

from dataclasses import replace

import pytest

from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.verdict import Evidence, Level, verdict


def interval(mean: float, half: float = 0.0) -> Interval:
    return Interval(mean, mean - half, mean + half, 64)


SAME = Evidence(
    defects=0,
    reference_defects=0,
    distance=interval(0.1),
    floor=interval(5, 1),
    alike=interval(1),
    match=interval(0, 0.1),
    reference_match=60,
)


def test_the_same_pictures_are_indistinguishable() -> None:
    found = verdict({"coco": SAME, "sdp": SAME})
    assert found.level is Level.INDISTINGUISHABLE
    assert found.reasons == ("coco: 100% of the pairs alike", "sdp: 100% of the pairs alike")


@pytest.mark.parametrize(
    ("change", "level", "reason"),
    [
        ({"defects": 1}, Level.CLEARLY_WORSE, "1 broken pictures, the reference has 0"),
        ({"distance": interval(9, 1)}, Level.CLEARLY_WORSE, "farther from full precision than another seed"),
        ({"match": interval(-3, 1)}, Level.CLEARLY_WORSE, "CLIP score lower by 3.00"),
        ({"alike": interval(0.93, 0.05)}, Level.SLIGHTLY_WORSE, "93% of the pairs alike"),
        ({"distance": interval(4.5, 1)}, Level.SLIGHTLY_WORSE, "near that of another seed"),
        ({"match": interval(-0.5, 0.2)}, Level.SLIGHTLY_WORSE, "CLIP score lower by 0.50"),
        ({"defects": 1, "reference_defects": 1}, Level.INDISTINGUISHABLE, "alike"),
        ({"match": interval(-0.5, 0.6)}, Level.INDISTINGUISHABLE, "alike"),
        ({"match": interval(-0.2, 0.1)}, Level.INDISTINGUISHABLE, "alike"),
        ({"match": interval(4, 1)}, Level.INDISTINGUISHABLE, "alike"),
    ],
)
def test_one_set_decides(change: dict[str, object], level: Level, reason: str) -> None:
    found = verdict({"coco": SAME, "sdp": replace(SAME, **change)})
    assert found.level is level
    assert any(reason in told for told in found.reasons)
