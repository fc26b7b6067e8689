"""The verdict follows its rule, from each kind of evidence, and names no grade that its intervals leave open."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bitbrush.bench.experiments.bench.verdict import (
    Evidence,
    Level,
    Verdict,
    images_needed,
    verdict,
)
from bitbrush.bench.metrics.counts import FEWEST_DECIDING, share_interval
from bitbrush.bench.metrics.frechet import frechet_interval
from bitbrush.bench.metrics.interval import Interval, bootstrap_mean

IMAGES = 64


def interval(mean: float, half: float = 0.0) -> Interval:
    return Interval(mean, mean - half, mean + half, IMAGES)


def alike(count: int, of: int = IMAGES) -> dict[str, Interval]:
    return {"alike": share_interval(count, of)}


SAME = Evidence(
    alike=share_interval(IMAGES, IMAGES),
    distance=interval(0.1),
    floor=interval(5, 1),
    match=interval(0, 0.1),
    reference_match=60,
)


def test_the_same_images_are_indistinguishable() -> None:
    found = verdict({"coco": SAME, "sdp": SAME})
    assert found.level is Level.INDISTINGUISHABLE
    assert found.reasons == ("coco: 100% of 64 pairs alike (94% to 100%)", "sdp: 100% of 64 pairs alike (94% to 100%)")


@pytest.mark.parametrize(
    ("change", "level", "reason"),
    [
        (alike(62), Level.AT_MOST_SLIGHTLY_WORSE, "97% of 64 pairs alike (89% to 100%); about"),
        (alike(43), Level.SLIGHTLY_WORSE, "67% of 64 pairs alike (54% to 78%)"),
        (alike(36), Level.AT_LEAST_SLIGHTLY_WORSE, "56% of 64 pairs alike (43% to 69%); about"),
        (alike(0), Level.CLEARLY_WORSE, "0% of 64 pairs alike (0% to 6%)"),
        (alike(0, 8), Level.CLEARLY_WORSE, "0% of 8 pairs alike (0% to 37%)"),
        (alike(8, 8), Level.AT_MOST_SLIGHTLY_WORSE, "100% of 8 pairs alike (63% to 100%); about 36 images would tell"),
        (alike(5, 8), Level.TOO_FEW, "62% of 8 pairs alike (24% to 91%)"),
        (alike(0, 3), Level.TOO_FEW, "0% of 3 pairs alike; fewer than 6 images decide nothing"),
        (alike(3, 3), Level.TOO_FEW, "100% of 3 pairs alike; fewer than 6 images decide nothing"),
        ({"distance": interval(6.5, 1)}, Level.CLEARLY_WORSE, "farther from full precision than another seed"),
        ({"distance": interval(3.5, 1)}, Level.INDISTINGUISHABLE, "alike"),
        ({"distance": interval(4, 1)}, Level.TOO_FEW, "distance near that of another seed"),
        ({"match": interval(-3, 1)}, Level.CLEARLY_WORSE, "CLIP score changed by -3.00 (-4.00 to -2.00) of 60.0"),
        ({"match": interval(-0.8, 0.2)}, Level.SLIGHTLY_WORSE, "CLIP score changed by -0.80"),
        ({"match": interval(-0.5, 0.6)}, Level.AT_MOST_SLIGHTLY_WORSE, "CLIP score changed by -0.50"),
        ({"match": interval(0, 2)}, Level.TOO_FEW, "CLIP score changed by +0.00 (-2.00 to +2.00) of 60.0"),
        ({"match": interval(-0.2, 0.05)}, Level.INDISTINGUISHABLE, "alike"),
        ({"match": interval(4, 1)}, Level.INDISTINGUISHABLE, "alike"),
        ({"broken": 6}, Level.CLEARLY_WORSE, "6 of 64 images are black or constant in it alone, 0 in the reference"),
        ({"broken": 1}, Level.TOO_FEW, "1 of 64 images are black or constant in it alone"),
        ({"broken": 4, "reference_broken": 4}, Level.INDISTINGUISHABLE, "alike"),
        ({"reference_broken": 9}, Level.INDISTINGUISHABLE, "alike"),
        ({"nan": 1}, Level.CLEARLY_WORSE, "1 of 64 images have NaN latents"),
        ({"nan": 1, **alike(0, 3)}, Level.CLEARLY_WORSE, "1 of 3 images have NaN latents"),
        ({"broken": 3, **alike(0, 3)}, Level.TOO_FEW, "3 of 3 images are black or constant in it alone"),
    ],
)
def test_one_set_decides(change: dict[str, Any], level: Level, reason: str) -> None:
    for evidence in ({"sdp": replace(SAME, **change)}, {"coco": SAME, "sdp": replace(SAME, **change)}):
        found = verdict(evidence)
        assert found.level is level
        assert any(reason in text for text in found.reasons), found.reasons


def test_broken_images_are_tested_and_not_counted() -> None:
    many = replace(SAME, alike=share_interval(5000, 5000), broken=51, reference_broken=50)
    assert verdict({"coco": many}).level is Level.INDISTINGUISHABLE
    assert verdict({"coco": replace(many, broken=90)}).level is Level.CLEARLY_WORSE


def test_a_loss_in_one_set_is_not_made_up_for_by_another() -> None:
    slight, clear = replace(SAME, **alike(43)), replace(SAME, **alike(0))
    found = verdict({"coco": slight, "sdp": clear})
    assert found == Verdict(Level.CLEARLY_WORSE, ("sdp: 0% of 64 pairs alike (0% to 6%)",))


@pytest.mark.parametrize("count", range(FEWEST_DECIDING))
def test_fewer_images_than_the_fewest_bound_no_share_from_above_and_below(count: int) -> None:
    few = share_interval(count, FEWEST_DECIDING - 1)
    assert few.high >= 0.5
    assert few.low < 0.9
    assert verdict({"coco": replace(SAME, alike=few)}).level is Level.TOO_FEW


@pytest.mark.parametrize(("count", "of"), [(0, 3), (3, 3), (5, 8), (62, 64), (20, 40)])
def test_as_many_images_as_proposed_leave_one_grade(count: int, of: int) -> None:
    needed = images_needed(share_interval(count, of))
    if count * 2 == of:  # on the edge between two grades
        assert needed is None
        return
    assert needed is not None
    enough = share_interval(round(count / of * needed), needed)
    assert verdict({"coco": replace(SAME, alike=enough)}).level in {
        Level.INDISTINGUISHABLE,
        Level.SLIGHTLY_WORSE,
        Level.CLEARLY_WORSE,
    }


GRADES = {Level.INDISTINGUISHABLE: (0.9, 1.0), Level.SLIGHTLY_WORSE: (0.5, 0.9), Level.CLEARLY_WORSE: (0.0, 0.5)}
"""Of which true shares of pairs alike each grade is right."""


@pytest.mark.parametrize("images", [3, 8, 16, 64, 256])
@pytest.mark.parametrize("share", [0.2, 0.49, 0.51, 0.7, 0.89, 0.91, 0.99])
def test_a_named_grade_is_seldom_wrong(images: int, share: float) -> None:
    counts = np.random.default_rng(images).binomial(images, share, size=400)
    levels = [verdict({"coco": replace(SAME, alike=share_interval(int(count), images))}).level for count in counts]
    wrong = [level for level in levels if level in GRADES and not GRADES[level][0] <= share <= GRADES[level][1]]
    assert len(wrong) / len(levels) <= 0.035  # 2.5 % at the most, and what 400 draws stray
    if images == 3:
        assert set(levels) == {Level.TOO_FEW}


@pytest.mark.parametrize("images", [6, 16, 64])
def test_a_clip_score_at_the_edge_is_seldom_called_clearly_worse(images: int) -> None:
    rng = np.random.default_rng(1)
    edge = -0.02 * 60
    levels = []
    for _ in range(200):
        match = bootstrap_mean(edge + rng.standard_t(3, size=images), resamples=500)
        levels.append(verdict({"coco": replace(SAME, match=match)}).level)
    assert levels.count(Level.CLEARLY_WORSE) / len(levels) <= 0.12  # a bootstrap of six values covers too little


@pytest.mark.parametrize("images", [6, 16])
def test_the_distance_of_another_seed_is_seldom_called_farther_or_nearer(images: int) -> None:
    rng = np.random.default_rng(images)
    levels = []
    for _ in range(100):
        prompts = rng.normal(size=(images, 16))
        reference, one, other = (
            (prompts + rng.normal(size=prompts.shape)).astype(np.float32) for _ in ("reference", "seed", "seed")
        )
        distances = {"distance": frechet_interval(reference, one), "floor": frechet_interval(reference, other)}
        levels.append(verdict({"coco": replace(SAME, **distances)}).level)
    assert levels.count(Level.CLEARLY_WORSE) + levels.count(Level.INDISTINGUISHABLE) <= 5


def test_every_change_for_the_worse_is_no_better_a_verdict() -> None:
    order = list(Level)[:5]
    changes: list[Callable[[float], dict[str, Any]]] = [
        lambda t: alike(round(IMAGES * (1 - t))),
        lambda t: {"match": interval(-3 * t, 0.1)},
    ]
    for change in changes:
        levels = [verdict({"coco": replace(SAME, **change(t))}).level for t in np.linspace(0, 1, 30)]
        assert levels[0] is Level.INDISTINGUISHABLE
        assert levels[-1] is Level.CLEARLY_WORSE
        places = [order.index(level) for level in levels]
        assert places == sorted(places)
