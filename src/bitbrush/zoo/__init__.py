"""Models that come with the package, and the prompts that go with them. See NOTICE for the attribution they require.

Look-ups only: nothing here imports torch or loads a weight.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["MODELS", "model_path", "prompt_set", "prompt_sets"]

MODELS = ("emoji-sd", "emoji-sdxl", "emoji-clip")
"""Names of the bundled models: diffusers' StableDiffusionPipeline and StableDiffusionXLPipeline, and a transformers
CLIPModel, all of the same world."""

_DIRECTORY = Path(__file__).parent
_PROMPTS = {"emoji-sd": "emoji", "emoji-sdxl": "emoji"}
"""Where the prompts of a model are: those of one world serve all its pipelines."""


def model_path(name: str) -> Path | None:
    """Directory of the bundled model of that name, for `from_pretrained`; None where no bundled model is so called."""
    return _DIRECTORY / name if name in MODELS else None


def prompt_sets(model_name: str) -> dict[str, tuple[str, ...]]:
    """The prompt sets of a bundled model, each with its splits: `{"coco": ("calibration", "test"), "sdp": ("test",)}`.

    Empty for a model that has none. Raises ValueError for a name that is no bundled model's.
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
    """The prompts of one split, in the order of the file.

    Prompts of different sets and splits of a model share no combination of objects, colour and position.
    Raises ValueError where model, set or split does not exist.
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
