"""State of an ablation: missing cells, and the recipe that is nearest to full precision."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.experiments.ablate.tables import Document, ranked
from bitbrush.bench.metrics.counts import FEWEST_DECIDING
from bitbrush.bench.metrics.interval import bootstrap_difference

CHANCE = 0.05


def headline(document: Document) -> str:
    """Sums up an ablation in a sentence.

    No recipe is named nearest before all cells are there, nor by too few images.
    """
    cells = document["cells"]
    if missing_recipes(document):
        return f"Unfinished: {len(cells)} of {len(document['bits']) * len(document['recipes'])} cells are there"
    measured = ranked(cells)
    if len(measured) < 2:
        return f"{len(measured)} recipes could be measured: there is nothing to compare"
    images = len(_psnr(measured[0]))
    if images < FEWEST_DECIDING:
        return f"{images} images are too few to tell which recipe is nearest to full precision"
    parts = list(_standings(document, images))
    failed = {f"{cell['recipe']} at {cell['bits']}": None for cell in cells if cell["problem"]}
    parts += [f"failed: {_listed(list(failed))}"] if failed else []
    sentence = "; ".join(parts)
    return sentence[0].upper() + sentence[1:]


def _standings(document: Document, images: int) -> Iterator[str]:
    nearest = {bits: nearest_recipes(document, bits) for bits in document["bits"]}
    if winners := {bits: names for bits, names in nearest.items() if len(names) == 1}:
        yield f"nearest to full precision: {_by_recipe(winners)}"
    for bits, names in nearest.items():
        if len(names) > 1:
            yield f"not told apart by {images} images: {_listed(names)} at {bits}"


def missing_recipes(document: Document) -> dict[str, list[str]]:
    """Lists the recipes whose cells are missing by bit setting; complete settings are left out."""
    there = {(cell["bits"], cell["recipe"]) for cell in document["cells"]}
    lacking = {bits: [name for name in document["recipes"] if (bits, name) not in there] for bits in document["bits"]}
    return {bits: names for bits, names in lacking.items() if names}


def missing_text(document: Document) -> str:
    """Names the missing cells in a sentence; empty where there are none."""
    missing = missing_recipes(document)
    return f"Not there yet: {_by_recipe(missing)}." if missing else ""


def nearest_recipes(document: Document, bits: str) -> list[str]:
    """Lists the recipe of the highest mean PSNR and those that the images do not separate from it.

    Recipes are compared image by image, by intervals so wide that one of them errs in 5 % of settings (Bonferroni).
    The list is empty for fewer than two recipes.
    """
    measured = ranked([cell for cell in document["cells"] if cell["bits"] == bits])
    if len(measured) < 2:
        return []
    first, *others = measured
    best, confidence = _psnr(first), 1 - CHANCE / len(others)
    alike = [cell for cell in others if bootstrap_difference(_psnr(cell), best, confidence=confidence).low <= 0]
    return [first["recipe"], *(cell["recipe"] for cell in alike)]


def _psnr(cell: Mapping[str, Any]) -> NDArray[np.float64]:
    """Returns the PSNR of each image of all prompt sets."""
    return np.concatenate([values["psnr"] for values in cell["values"].values()])


def _by_recipe(recipes: Mapping[str, Sequence[str]]) -> str:
    """Formats recipes by setting: ``rtn at W8A8 and W4A8; pcr at W4A8``."""
    settings: dict[str, list[str]] = {}
    for bits, names in recipes.items():
        for name in names:
            settings.setdefault(name, []).append(bits)
    return "; ".join(f"{name} at {_listed(bits)}" for name, bits in settings.items())


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
