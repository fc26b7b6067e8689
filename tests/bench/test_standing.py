"""What an ablation says of its recipes: no winner before the end, nor one that its images do not tell from others."""

from typing import Any

import numpy as np
import pytest

from bitbrush.bench.experiments.ablate.standing import headline, missing_text

BITS = ("W8A8", "W4A8")


def cell(bits: str, recipe: str, psnr: Any) -> dict[str, Any]:
    values = {"coco": {"psnr": list(psnr[::2])}, "sdp": {"psnr": list(psnr[1::2])}}
    figures = {"all prompt sets": {"psnr": {"mean": float(np.mean(psnr))}}}
    return {"bits": bits, "recipe": recipe, "problem": None, "figures": figures, "values": values}


def document(*cells: dict[str, Any], bits: tuple[str, ...] = BITS) -> dict[str, Any]:
    return {"bits": list(bits), "recipes": ["rtn", "pcr", "best"], "cells": list(cells)}


def levels(images: int, gain: float, noise: float = 1.0, seed: int = 0) -> Any:
    """PSNR of images that differ more than recipes do."""
    rng = np.random.default_rng(seed)
    return 30 + 5 * np.random.default_rng(99).normal(size=images) + gain + noise * rng.normal(size=images)


def whole(images: int, gains: tuple[float, float, float], bits: tuple[str, ...] = BITS) -> dict[str, Any]:
    names = ("rtn", "pcr", "best")
    cells = [
        cell(one, name, levels(images, gain, seed=seed))
        for one in bits
        for seed, (name, gain) in enumerate(zip(names, gains, strict=True))
    ]
    return document(*cells, bits=bits)


def test_the_nearest_is_named_where_the_images_tell() -> None:
    assert headline(whole(64, (0, 2, 5))) == "Nearest to full precision: best at W8A8 and W4A8"


def test_those_that_are_not_told_apart_are_named_together() -> None:
    found = headline(whole(64, (0, 2, 2.1), bits=("W8A8",)))
    assert found == "Not told apart by 64 images: best and pcr at W8A8"
    both = document(*whole(64, (0, 2, 2.1), ("W8A8",))["cells"], *whole(64, (9, 2, 2), ("W4A8",))["cells"])
    assert headline(both) == "Nearest to full precision: rtn at W4A8; not told apart by 64 images: best and pcr at W8A8"


@pytest.mark.parametrize("images", [3, 5])
def test_few_images_name_none(images: int) -> None:
    assert headline(whole(images, (0, 20, 50))) == (
        f"{images} images are too few to tell which recipe is nearest to full precision"
    )


@pytest.mark.parametrize("lacking", range(6))
def test_an_unfinished_one_names_none_and_tells_what_is_missing(lacking: int) -> None:
    told = whole(64, (0, 2, 5))
    lost = told["cells"].pop(lacking)
    assert headline(told) == "Unfinished: 5 of 6 cells are there"
    assert missing_text(told) == f"Not there yet: {lost['recipe']} at {lost['bits']}."
    assert (
        missing_text(document()) == "Not there yet: rtn at W8A8 and W4A8; pcr at W8A8 and W4A8; best at W8A8 and W4A8."
    )
    assert missing_text(whole(64, (0, 2, 5))) == ""


def test_recipes_that_failed_are_told_of() -> None:
    told = whole(64, (0, 2, 5))
    told["cells"][1] |= {"problem": "no such key"}
    assert headline(told) == "Nearest to full precision: best at W8A8 and W4A8; failed: pcr at W8A8"
    for one in told["cells"][1:]:
        one["problem"] = "no such key"
    assert headline(told) == "1 recipes could be measured: there is nothing to compare"


def test_equal_recipes_are_seldom_told_apart() -> None:
    wrong = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        cells = [cell("W8A8", name, 30 + rng.normal(size=16)) for name in ("rtn", "pcr", "best")]
        wrong += headline(document(*cells, bits=("W8A8",))).startswith("Nearest")
    assert wrong <= 10
