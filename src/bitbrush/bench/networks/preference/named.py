"""Metrics of preference and perception by name: ``bench --metric NAME=WEIGHTS``."""

import difflib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from importlib.util import find_spec

from bitbrush.bench.metrics.registry import Metric

LOADERS = {
    "pickscore": ("transformers", "transformers", "bitbrush.bench.networks.preference.pickscore:load"),
    "imagereward": ("ImageReward", "image-reward", "bitbrush.bench.networks.preference.imagereward:load"),
    "hpsv2": ("hpsv2", "hpsv2", "bitbrush.bench.networks.preference.hpsv2:load"),
    "dreamsim": ("dreamsim", "dreamsim", "bitbrush.bench.networks.preference.dreamsim:load"),
}
"""Module that a metric needs, what pip installs it by, and the function that loads it, by name."""


def load_named(text: str) -> Metric:
    """Loads the metric ``NAME=WEIGHTS``.

    Raises:
        ValueError: The form or the name is unknown, or the package or the weights are missing.
    """
    name, _, weights = text.partition("=")
    if name not in LOADERS or not weights:
        near = difflib.get_close_matches(name, LOADERS, 1)
        hint = f"; did you mean {near[0]}=WEIGHTS?" if near and near[0] != name else ""
        raise ValueError(f"metric is {text!r}; expected NAME=WEIGHTS with a name of {', '.join(LOADERS)}{hint}")
    module, package, place = LOADERS[name]
    if find_spec(module) is None:
        raise ValueError(f"metric {name} needs a package that is missing: pip install {package}")
    load: Callable[[str], Metric] = EntryPoint(name, place, "").load()
    return load(weights)
