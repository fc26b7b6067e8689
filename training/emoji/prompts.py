"""The prompt sets that go with `emoji-sd`: calibration and test prompts that share no combination."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from random import Random

from training.emoji.scenes import (
    COLOURS,
    OBJECTS,
    PAIR_POSITIONS,
    SINGLE_POSITIONS,
    SINGLE_SHARE,
    SINGLE_SIZES,
    Position,
    Scene,
    Size,
    Style,
    caption,
)

SEED = 2026


@dataclass(frozen=True)
class PromptFile:
    """One file of prompts: all in one style, for one purpose."""

    style: Style
    split: str
    count: int

    @property
    def name(self) -> str:
        return f"{self.style}.{self.split}.txt"


PROMPT_FILES = (
    PromptFile(Style.COCO, "calibration", 256),
    PromptFile(Style.COCO, "test", 512),
    PromptFile(Style.SDP, "test", 512),
)

Combination = tuple[tuple[str, ...], str, Position]
"""What two prompt files never share: (objects, colour, position)."""


def scenes_by_file(seed: int = SEED) -> dict[PromptFile, tuple[Scene, ...]]:
    """The scenes of every prompt file, in order; 65 % show one object; combinations are pairwise disjoint.

    All combinations are shuffled once and dealt out file by file. The order is that of the SHA-256 of seed and
    combination rather than of a random generator, so the files stay the same under any version of any library.
    """
    singles = iter(sorted(_single_combinations(), key=lambda combination: _shuffle_key(seed, combination)))
    pairs = iter(sorted(_pair_combinations(), key=lambda combination: _shuffle_key(seed, combination)))
    scenes = {}
    for file in PROMPT_FILES:
        single_count = round(SINGLE_SHARE * file.count)
        dealt = [next(singles) for _ in range(single_count)]
        dealt += [next(pairs) for _ in range(file.count - single_count)]
        # Shuffled again, so that the first N prompts of a file are as mixed as the whole.
        dealt.sort(key=lambda combination: _shuffle_key(seed + 1, combination))
        rng = Random(f"{seed} sizes {file.name}")
        scenes[file] = tuple(_with_size(combination, rng) for combination in dealt)
    return scenes


def make_prompts(seed: int = SEED) -> dict[str, tuple[str, ...]]:
    """File name -> its prompts, unique within and between the files."""
    prompts = {}
    for file, scenes in scenes_by_file(seed).items():
        rng = Random(f"{seed} captions {file.name}")
        prompts[file.name] = tuple(caption(scene, file.style, rng) for scene in scenes)
    return prompts


def write_prompts(directory: Path, seed: int = SEED) -> None:
    """Write the prompt files into `directory`, one prompt a line."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, prompts in make_prompts(seed).items():
        (directory / name).write_text("\n".join(prompts) + "\n", encoding="utf-8", newline="\n")


def _single_combinations() -> Iterator[Combination]:
    return (((name,), colour, place) for name in OBJECTS for colour in COLOURS for place in SINGLE_POSITIONS)


def _pair_combinations() -> Iterator[Combination]:
    pairs = permutations(OBJECTS, 2)
    return ((pair, colour, place) for pair in pairs for colour in COLOURS for place in PAIR_POSITIONS)


def _shuffle_key(seed: int, combination: Combination) -> bytes:
    objects, colour, position = combination
    text = "|".join((str(seed), *objects, colour, position.name))
    return hashlib.sha256(text.encode()).digest()


def _with_size(combination: Combination, rng: Random) -> Scene:
    objects, colour, position = combination
    return Scene(objects, colour, Size.PAIR if len(objects) == 2 else rng.choice(SINGLE_SIZES), position)
