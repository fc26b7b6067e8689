"""Recipe settings of earlier versions: renamed, accepted if they have no effect, otherwise rejected by name.

docs/results.md has the measurements that led to their removal.
"""

from collections.abc import Mapping
from typing import Any

RENAMED = {"fine": "high_precision"}
"""Keys of earlier versions with their current names."""
KEYS = {"output_means": "keep", "group_size": "none"}
"""Removed keys, each with its neutral value."""
VALUES = {"rounding": {"quantized-inputs": "learned"}, "smoothing": {"learned": "none"}}
"""Removed values by key, each with its replacement."""
RANGES_BY_STEP = ("pcr", "best", "paper")
"""Methods whose step sizes could be learned per step in earlier versions."""


def renamed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the recipe with current key names."""
    return {RENAMED.get(key, key): value for key, value in recipe.items()}


def removed_setting(recipe: Mapping[str, Any]) -> str | None:
    """Returns the first unsupported setting as ``key = value``, or None if all are supported."""
    recipe = renamed(recipe)
    settings = without_removed(recipe)
    changed = [key for key in recipe if key in settings and settings[key] is not recipe[key]]  # NaN differs from itself
    changed += [key for key, neutral in KEYS.items() if recipe.get(key) not in (None, neutral)]
    return f"{changed[0]} = {recipe[changed[0]]}" if changed else None


def without_removed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the recipe with current key names, without removed keys and with removed values replaced."""
    named = renamed(recipe)
    settings = {key: VALUES.get(key, {}).get(str(value), value) for key, value in named.items() if key not in KEYS}
    if settings.get("step_sizes") == "learned" and settings.get("method") in RANGES_BY_STEP:
        settings["step_sizes"] = "observed"
    return settings
