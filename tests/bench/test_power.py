"""Power of paired comparisons: a difference of the detectable size is found four times in five."""

import numpy as np
import pytest

from bitbrush.bench.experiments.bench.power import FULL, Detectable, detectable_differences, power_lines
from bitbrush.bench.metrics.power import detectable_difference

RUNS = 2000


@pytest.mark.parametrize("count", [6, 16, 64, 256])
@pytest.mark.parametrize(("confidence", "power"), [(0.95, 0.8), (0.9, 0.6)])
def test_a_difference_of_this_size_is_found_as_often_as_it_says(count: int, confidence: float, power: float) -> None:
    rng = np.random.default_rng(count)
    noise = rng.normal(scale=3.0, size=(RUNS, count))
    spread = 3.0 * np.array([-1.0, 1.0] * (count // 2)) / np.sqrt(count / (count - 1))  # its deviation is 3
    size = detectable_difference(spread, power=power, confidence=confidence)
    assert size is not None
    found = 0
    for differences in noise + size:
        lowest = detectable_difference(differences, power=0.5, confidence=confidence)  # the half width of its interval
        assert lowest is not None
        found += abs(differences.mean()) > lowest
    assert found / RUNS == pytest.approx(power, abs=0.04)


def test_four_times_the_images_halve_it() -> None:
    differences = np.random.default_rng(0).normal(size=400)
    few, many = detectable_difference(differences[:100]), detectable_difference(np.tile(differences[:100], 4))
    assert few is not None
    assert many is not None
    assert many / few == pytest.approx(0.5, rel=0.02)


def test_too_few_pairs_or_none_that_differ_have_no_power() -> None:
    assert detectable_difference(np.arange(5.0)) is None
    assert detectable_difference(np.full(20, 1.5)) is None


def test_every_candidate_is_compared_with_full_precision_and_every_other() -> None:
    rng = np.random.default_rng(1)
    psnr = {name: rng.normal(30, 1, size=20) for name in ("one", "two", "three")}
    from_full = {name: {"CLIP score difference (c)": rng.normal(size=20)} for name in psnr}
    from_full["same"] = {"CLIP score difference (c)": np.zeros(20)}
    power = list(detectable_differences("coco", from_full, psnr))
    assert [(one.candidate, one.against) for one in power] == [
        *((name, FULL) for name in psnr),
        ("one", "two"),
        ("one", "three"),
        ("two", "three"),
    ]
    assert {(one.prompt_set, one.images) for one in power} == {("coco", 20)}


def test_the_sentence_has_the_range_of_every_metric() -> None:
    power = [
        Detectable("coco", "one", FULL, "CLIP score difference", 0.5, 64),
        Detectable("coco", "two", FULL, "CLIP score difference", 1.25, 64),
        Detectable("coco", "one", "two", "PSNR (dB)", 0.875, 64),
        Detectable("sdp", "one", FULL, "CLIP score difference", 0.25, 32),
    ]
    coco, sdp = power_lines(power)
    assert coco.startswith("64 images of coco show differences of these sizes with 80% power")
    assert "CLIP score difference from full precision 0.5 to 1.2; PSNR (dB) between two candidates 0.88." in coco
    assert sdp.startswith("32 images of sdp")
    assert sdp.endswith("CLIP score difference from full precision 0.25.")
