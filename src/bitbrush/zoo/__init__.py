"""Bundled models and their prompt sets; NOTICE has the attribution that they require.

This module only looks up paths: it imports neither torch nor weights.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["MODELS", "model_path", "prompt_set", "prompt_sets"]

MODELS = ("emoji-sd", "emoji-sdxl", "emoji-clip")
"""Names of the bundled models: two pipelines of diffusers, StableDiffusion and StableDiffusionXL, and a CLIPModel.

All of them have the same image domain.
"""

_DIRECTORY = Path(__file__).parent
_PROMPTS = {"emoji-sd": "emoji", "emoji-sdxl": "emoji"}
"""Prompt folder of each model; models of one image domain share it."""


def model_path(name: str) -> Path | None:
    """Returns the directory of a bundled model for `from_pretrained`, or None if the name is not bundled."""
    return _DIRECTORY / name if name in MODELS else None


def prompt_sets(model_name: str) -> dict[str, tuple[str, ...]]:
    """Lists the prompt sets of a bundled model with their splits.

    Args:
        model_name: Name of a bundled model.

    Returns:
        Splits by set, e.g. `{"coco": ("calibration", "test"), "sdp": ("test",)}`; empty for a model without prompts.

    Raises:
        ValueError: No bundled model has this name.
    """
    if model_name not in MODELS:
        raise ValueError(f"no bundled model is called {model_name!r}; bundled are {', '.join(MODELS)}")
    splits: dict[str, tuple[str, ...]] = {}
    if model_name not in _PROMPTS:
        return splits
    for path in sorted((_DIRECTORY / "prompts" / _PROMPTS[model_name]).glob("*.txt")):
        set_name, split, _ = path.name.split(".")
        splits[set_name] = (*splits.get(set_name, ()), split)
    return splits


def prompt_set(model_name: str, set_name: str, split: str) -> tuple[str, ...]:
    """Reads the prompts of one split, in the order of the file.

    Prompts of different sets and splits of a model share no combination of objects, colour and position.

    Raises:
        ValueError: Model, set or split does not exist.
    """
    sets = prompt_sets(model_name)
    if set_name not in sets:
        existing = f"it has {', '.join(sets)}" if sets else "it has none"
        raise ValueError(
            f"model {model_name!r} has no prompt set {set_name!r}; {existing}. A file of prompts works too"
        )
    if split not in sets[set_name]:
        existing = ", ".join(sets[set_name])
        raise ValueError(f"prompt set {set_name!r} of {model_name!r} has no split {split!r}; it has {existing}")
    path = _DIRECTORY / "prompts" / _PROMPTS[model_name] / f"{set_name}.{split}.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines())
