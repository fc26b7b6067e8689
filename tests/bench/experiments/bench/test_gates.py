"""Gates: read from text, refused by name, and held to every pair or to a figure of all pairs."""

import math
from dataclasses import asdict
from typing import Any, cast

import pytest

from bitbrush.bench.experiments.bench.figures import EntryFigures, SetFigures
from bitbrush.bench.experiments.bench.gates import Gate, GateResult, gate_lines, gate_results
from bitbrush.bench.experiments.bench.qdiffbench import Entry
from bitbrush.bench.images.image_values import ImageSets

METRICS = [
    "PSNR (dB)",
    "SSIM",
    "image MSE",
    "LPIPS (alex)",
    "latent MSE",
    "CLIP score (c)",
    "CLIP score difference (c)",
]


class Images:
    """Stands for a prompt set's images."""

    prompts = ("a cat", "a dog", "an owl", "a fox")

    def seed(self, index: int) -> int:
        return 1 + index % 2


def candidate(**values: list[float | None]) -> EntryFigures:
    by_metric = {"PSNR (dB)": values.get("psnr", []), "latent MSE": values.get("latent", [])}
    of_set = SetFigures({}, (), {}, (), {}, by_metric)
    return EntryFigures(Entry(None, "quantized", {"coco": cast(ImageSets, Images())}), {"coco": of_set})


def result(text: str, **values: list[float | None]) -> GateResult:
    (found,) = gate_results([Gate.parse(text, METRICS)], [candidate(**values)])
    return found


@pytest.mark.parametrize(
    ("text", "metric", "statistic", "relation", "bound"),
    [
        ("psnr>=25", "psnr", "", ">=", 25),
        (" LPIPS <= 0.15 ", "lpips", "", "<=", 0.15),
        ("image-mse<1e-3", "image-mse", "", "<", 1e-3),
        ("image MSE<1e-3", "image-mse", "", "<", 1e-3),
        ("clip-score-difference>-2", "clip-score-difference", "", ">", -2),
        ("median(psnr)>=30", "psnr", "median", ">=", 30),
        ("mean( ssim )>0.9", "ssim", "mean", ">", 0.9),
    ],
)
def test_is_read(text: str, metric: str, statistic: str, relation: str, bound: float) -> None:
    assert Gate.parse(text, METRICS) == Gate(text.strip(), metric, statistic, relation, bound)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("psnr", "expected METRIC<=NUMBER"),
        ("psnr>=", "expected METRIC<=NUMBER"),
        ("psnr>=good", "expected METRIC<=NUMBER"),
        ("psnr>=nan", "expected METRIC<=NUMBER"),
        ("psnr==25", "expected METRIC<=NUMBER"),
        ("max(psnr)>=25", "expected METRIC<=NUMBER"),
        ("20<=psnr", "expected METRIC<=NUMBER"),
        ("psnrr>=25", "measured are psnr, ssim, .*; did you mean 'psnr'?"),
    ],
)
def test_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gate.parse(text, METRICS)


def test_lpips_without_weights_names_the_option() -> None:
    with pytest.raises(ValueError, match="--lpips FILE"):
        Gate.parse("lpips<=0.15", METRICS[:3])


def test_every_pair_must_keep_it() -> None:
    held = result("psnr>=25", psnr=[30.0, 25.0, 40.0, 26.0])
    assert (held.passed, held.value, held.pairs, held.failing) == (True, 25.0, 4, ())
    failed = result("psnr>=25", psnr=[30.0, 24.9, 40.0, 10.0])
    assert (failed.passed, failed.value) == (False, 10.0)
    assert [(pair.image, pair.prompt, pair.seed) for pair in failed.failing] == [(3, "a fox", 2), (1, "a dog", 2)]


def test_a_figure_of_all_pairs_keeps_it_though_some_do_not() -> None:
    psnr: list[float | None] = [30.0, 24.0, 40.0, 10.0]
    assert result("median(psnr)>=25", psnr=psnr).passed
    assert result("median(psnr)>=25", psnr=psnr).value == 27
    assert not result("mean(psnr)>26", psnr=psnr).passed
    assert [pair.image for pair in result("mean(psnr)>26", psnr=psnr).failing] == [3, 1]


def test_pairs_without_a_value_are_left_out_and_those_that_are_not_finite_fail() -> None:
    assert result("latent-mse<=0.1", latent=[0.01, None, None, None]).passed
    broken = result("latent-mse<=0.1", latent=[0.01, math.nan, None, 0.2])
    assert [(pair.image, pair.value) for pair in broken.failing] == [(1, None), (3, 0.2)]
    assert (broken.passed, broken.value, broken.pairs) == (False, None, 3)
    none = result("latent-mse<=0.1", latent=[None, None])
    assert (none.passed, none.pairs) == (False, 0)
    assert not result("median(latent-mse)<=0.1", latent=[None, None]).passed


def test_lines_name_the_failing_pairs_worst_first() -> None:
    document: dict[str, Any] = {
        "gates": [
            asdict(result("psnr>=25", psnr=[30.0, 24.9, 40.0, 10.0])),
            asdict(result("psnr>=9", psnr=[30.0, 24.9, 40.0, 10.0])),
            asdict(result("latent-mse<=1", latent=[None])),
        ]
    }
    assert list(gate_lines(document)) == [
        "quantized fails psnr>=25 on coco: worst 10, 2 of 4 pairs beyond",
        "  10  image 3, seed 2: a fox",
        "  24.9  image 1, seed 2: a dog",
        "quantized fails latent-mse<=1 on coco: no pair has a value",
    ]
