"""The prompt files that ship are those the recipe makes, and share no combination."""

import re
from itertools import combinations
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bitbrush import zoo
from training.emoji.__main__ import app
from training.emoji.prompts import PROMPT_FILES, scenes_by_file
from training.emoji.scenes import COLOURS, OBJECTS, Position

SHIPPED = Path(zoo.__file__).parent / "prompts" / "emoji"
_OBJECT = re.compile(r"\b(" + "|".join(sorted(OBJECTS, key=len, reverse=True)) + r")\b")
_COLOUR = re.compile(r"\b(" + "|".join(COLOURS) + r")\b")


def parse(prompt: str) -> tuple[tuple[str, ...], str, Position]:
    """(objects, colour, position) read back from the words alone."""
    objects = tuple(_OBJECT.findall(prompt))
    rest = _OBJECT.sub("", prompt)
    (colour,) = _COLOUR.findall(rest)
    stated = [position for position in Position if position.phrase and position.phrase in rest]
    (position,) = stated or [Position.CENTRE]
    return objects, colour, position


@pytest.fixture(scope="module")
def shipped() -> dict[str, list[str]]:
    return {path.name: path.read_text(encoding="utf-8").splitlines() for path in SHIPPED.iterdir()}


def test_shipped_files_are_reproduced_byte_for_byte(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["prompts", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in SHIPPED.iterdir()}


def test_counts_and_uniqueness(shipped: dict[str, list[str]]) -> None:
    assert {name: len(prompts) for name, prompts in shipped.items()} == {
        "coco.calibration.txt": 256,
        "coco.test.txt": 512,
        "sdp.test.txt": 512,
    }
    every = [prompt for prompts in shipped.values() for prompt in prompts]
    assert len(set(every)) == len(every)


def test_prompts_say_what_their_scenes_show(shipped: dict[str, list[str]]) -> None:
    for file, scenes in scenes_by_file().items():
        expected = [(scene.objects, scene.colour, scene.position) for scene in scenes]
        assert [parse(prompt) for prompt in shipped[file.name]] == expected


def test_combinations_of_the_files_are_disjoint(shipped: dict[str, list[str]]) -> None:
    parsed = [{parse(prompt) for prompt in prompts} for prompts in shipped.values()]
    assert sorted(map(len, parsed)) == sorted(file.count for file in PROMPT_FILES)
    assert all(first.isdisjoint(second) for first, second in combinations(parsed, 2))
