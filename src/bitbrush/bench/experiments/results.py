"""Results files of experiments: JSON text, package versions, and intervals whose ends may not exist."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from bitbrush.bench.metrics.interval import Interval

PACKAGES: Sequence[str] = ("bitbrush", "torch", "diffusers", "transformers", "numpy")


def results_text(document: Mapping[str, Any]) -> str:
    """Serializes a results document as JSON."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def versions() -> dict[str, str]:
    """Returns the versions of the packages, Python and CPU features that figures depend on."""
    return {
        **{name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def finite(value: Any) -> Any:
    """Converts a value to JSON values; numbers that are not finite, such as missing interval ends, become None."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: finite(entry) for key, entry in value.items()}
        case list() | tuple():
            return [finite(entry) for entry in value]
        case _:
            return value


def interval_of(entry: Mapping[str, Any]) -> Interval:
    """Reads an interval of a results document; ends that :func:`finite` left out become infinite."""
    low, high = entry["low"], entry["high"]
    return Interval(entry["mean"], -math.inf if low is None else low, math.inf if high is None else high, entry["n"])
