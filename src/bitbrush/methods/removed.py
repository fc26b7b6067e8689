"""Recipe settings of earlier versions: renamed, accepted where they change nothing, refused by name elsewhere.

docs/results.md has the measurements that they were removed for.
"""

from collections.abc import Mapping
from typing import Any

RENAMED = {"fine": "high_precision"}
"""Keys of earlier versions by the names that they have now."""
KEYS = {"output_means": "keep", "group_size": "none"}
"""Removed keys, each with the value that changes nothing."""
VALUES = {"rounding": {"quantized-inputs": "learned"}, "smoothing": {"learned": "none"}}
"""Removed values by key, each with the one that takes its place."""
RANGES_BY_STEP = ("pcr", "best", "paper")
"""Methods whose step sizes could be learned step by step."""


def renamed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with today's key names."""
    return {RENAMED.get(key, key): value for key, value in recipe.items()}


def removed_setting(recipe: Mapping[str, Any]) -> str | None:
    """The first setting that this version does not carry out, as ``key = value``; None if it carries out all."""
    recipe = renamed(recipe)
    kept = without_removed(recipe)
    changed = [key for key in recipe if key in kept and kept[key] != recipe[key]]
    changed += [key for key, neutral in KEYS.items() if recipe.get(key) not in (None, neutral)]
    return f"{changed[0]} = {recipe[changed[0]]}" if changed else None


def without_removed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with today's key names, removed keys left out and removed values replaced."""
    named = renamed(recipe)
    kept = {key: VALUES.get(key, {}).get(str(value), value) for key, value in named.items() if key not in KEYS}
    if kept.get("step_sizes") == "learned" and kept.get("method") in RANGES_BY_STEP:
        kept["step_sizes"] = "observed"
    return kept
