"""Results files of experiments: one envelope around their content, as ``bench/schemas/results.schema.json`` says."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from bitbrush.bench.metrics.interval import Interval

SCHEMA_VERSION = 3
"""Version of the documents.

Those of version 1 lack ``experiment``, and some ``protocol`` or ``versions``. Up to version 2 errors by step are
arithmetic means, and ``bench`` lacks power, gates, and sizes in memory.
"""
PACKAGES: Sequence[str] = ("bitbrush", "torch", "diffusers", "transformers", "numpy")


def results_document(
    experiment: str, *, command: str, protocol: Mapping[str, Any], content: Mapping[str, Any]
) -> dict[str, Any]:
    """Puts the content of an experiment's results into the envelope that all share.

    Args:
        experiment: Name of the command.
        command: Command line, or empty when called from Python.
        protocol: Settings that the figures depend on.
        content: The experiment's own entries.

    Returns:
        The document as JSON values; numbers that are not finite are None.
    """
    document: dict[str, Any] = finite(
        {
            "schema_version": SCHEMA_VERSION,
            "experiment": experiment,
            "command": command,
            "protocol": dict(protocol),
            **content,
            "versions": versions(),
        }
    )
    return document


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
