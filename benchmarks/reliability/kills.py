"""Commands killed by SIGKILL: what is left, and what the same command makes of it.

    python -m benchmarks.reliability.kills [--kills 50] [--seed 0] [--output FILE]

Half of the kills come at a random moment. The others come before a change of the disk: renames of whole folders
first, then others by chance. It goes on with kills that the file does not list yet.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.reliability.killing import RENAMES, Change, changes, run
from bitbrush.artifact.folder import CARD, MANIFEST
from bitbrush.artifact.store import verify
from bitbrush.session.digests import file_digest, json_digest
from bitbrush.session.disk import write_whole
from bitbrush.session.journal import Journal
from bitbrush.session.outputs import work_folder

RECORD = Path(__file__).parents[1] / "results" / "reliability-kills.json"
MODEL, PROMPTS, SOURCE, OUTPUT = "model", "prompts.txt", "source", "artifact"
TINY = ("--prompts", PROMPTS, "--steps", "2", "--num-prompts", "2", "--batch-size", "2", "--method", "pcr")
NEAREST, LEARNED = ("--rounding", "nearest"), ("--exclude", "up_blocks.*", "--exclude", "down_blocks.*")
SMALL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
}
"""Changes that make Stable Diffusion's U-Net small."""
EMOJI = ("--steps", "2", "--num-prompts", "2", "--batch-size", "2", "--method", "pcr", "--rounding", "nearest")


@dataclass(frozen=True)
class Scenario:
    """A command that writes OUTPUT, and its share of the kills.

    Args:
        name: Name in the record.
        arguments: Arguments of ``bitbrush``.
        weight: Share of the kills, relative to the others.
        replaces: Whether there is another artifact at OUTPUT before.
    """

    name: str
    arguments: tuple[str, ...]
    weight: int
    replaces: bool = False


QUANTIZE, RECALIBRATE = ("quantize", MODEL, "-o", OUTPUT), ("recalibrate", SOURCE, "-o", OUTPUT)
SCENARIOS = (
    Scenario("quantize", (*QUANTIZE, *TINY, *NEAREST), 10),
    Scenario("quantize, learned rounding", (*QUANTIZE, *TINY, *LEARNED), 10),
    Scenario("quantize --overwrite", (*QUANTIZE, *TINY, *NEAREST, "--overwrite"), 12, replaces=True),
    Scenario("recalibrate", (*RECALIBRATE, "--prompts", PROMPTS, "--steps", "1"), 6),
    Scenario("recalibrate --overwrite", (*RECALIBRATE, "--prompts", PROMPTS, "--steps", "1", "--overwrite"), 8, True),
    Scenario("quantize emoji-sd", ("quantize", "emoji-sd", "-o", OUTPUT, *EMOJI), 4),
)


def bitbrush(folder: Path, arguments: Sequence[str]) -> Callable[[], None]:
    """Returns a function that runs the command line in ``folder``."""

    def command() -> None:
        from bitbrush.cli import main

        os.chdir(folder)
        sys.argv = ["bitbrush", *arguments]
        main()

    return command


def content_digest(artifact: Path) -> str:
    """Verifies an artifact, and returns the digest of all but its costs and its card, which shows them."""
    manifest = {key: value for key, value in verify(artifact).items() if key != "cost"}
    files = [path for path in sorted(artifact.rglob("*")) if path.is_file() and path.name not in (MANIFEST, CARD)]
    return json_digest([manifest, {path.relative_to(artifact).as_posix(): file_digest(path) for path in files}])


def prepare(folder: Path) -> None:
    """Writes a tiny pipeline, prompts, and an artifact of other weights."""
    from tests.artifact.pipelines import PROMPTS as TEXTS
    from tests.artifact.pipelines import SD1, stable_diffusion

    torch.manual_seed(0)
    stable_diffusion("StableDiffusionPipeline", {**SD1, **SMALL})().save_pretrained(folder / MODEL)
    (folder / PROMPTS).write_text("\n".join(TEXTS), encoding="utf-8")
    status = run(bitbrush(folder, ("quantize", MODEL, "-o", SOURCE, *TINY, *NEAREST, "--weights", "3")))
    assert status == 0


class Trial:
    """Kills of one scenario in ``folder``, which :func:`prepare` made."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.folder, self.output = scenario, folder, folder / OUTPUT
        self._said, self._log = folder.with_name("said.txt"), folder.with_name("changes.txt")
        self._log.unlink(missing_ok=True)
        self.reset()
        self.old = content_digest(self.output) if scenario.replaces else None
        self._command(log=self._log)  # the first run of a process reads what later ones find in memory
        self.changes = changes(self._log)
        self.reset()
        began = time.monotonic()
        assert self._command() == 0, self._said.read_text(encoding="utf-8")
        self.seconds, self.new = time.monotonic() - began, content_digest(self.output)

    def reset(self) -> None:
        for path in (self.output, work_folder(self.output)):
            shutil.rmtree(path, ignore_errors=True)
        if self.scenario.replaces:
            shutil.copytree(self.folder / SOURCE, self.output)

    def kill(self, **moment: Any) -> dict[str, Any]:
        """Kills the command at a moment, runs it again, and returns what was left and whether all is as it must be."""
        self.reset()
        killed = self._command(**moment) == -9
        left = self._left()
        status = self._command()
        finished = status == 0 or (left.startswith("new") and "holds an artifact" in self._said.read_text("utf-8"))
        same = self.output.exists() and content_digest(self.output) == self.new
        foreign = sorted({path.name for path in self.folder.iterdir()} - {MODEL, PROMPTS, SOURCE, OUTPUT})
        right = finished and same and not foreign and "damaged" not in left
        row = {"killed": killed, "left": left, "rerun": status, "same bits": same, "right": right}
        return row | ({"leftovers": foreign} if foreign else {})

    def _left(self) -> str:
        pieces = len(Journal(work_folder(self.output)).pieces())
        work = "work" if pieces else "no work"
        if not self.output.exists():
            return f"no artifact, {work}"
        digests = {self.old: "old", self.new: "new"}
        return f"{digests.get(content_digest(self.output), 'damaged')} artifact, {work}"

    def _command(self, **moment: Any) -> int:
        return run(bitbrush(self.folder, self.scenario.arguments), output=self._said, **moment)


def points(found: Sequence[Change], chance: random.Random, count: int) -> list[int]:
    """Chooses numbers of changes: first those around each rename of a whole folder, then others by chance."""
    folders = [at for at, one in enumerate(found) if one.function in RENAMES and not one.name.endswith(".part")]
    first = list(dict.fromkeys(place for at in folders for place in (at, at + 1) if place < len(found)))
    others = [place for place in range(len(found)) if place not in first]
    return [*first, *chance.sample(others, min(len(others), count))][:count]


def moments(trial: Trial, seed: int, count: int) -> list[dict[str, Any]]:
    """Chooses the moments of ``count`` kills."""
    chance = random.Random(f"{seed} {trial.scenario.name}")
    before = [{"before": place} for place in points(trial.changes, chance, count - count // 2)]
    return before + [{"after": chance.random()} for _ in range(count - len(before))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RECORD)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(given.output.read_text("utf-8"))["kills"] if given.output.exists() else []
    total = sum(scenario.weight for scenario in SCENARIOS)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "folder"
        folder.mkdir()
        prepare(folder)
        for scenario in SCENARIOS:
            count = round(given.kills * scenario.weight / total)
            done = {row["kill"] for row in rows if row["command"] == scenario.name}
            missing = [number for number in range(count) if number not in done]
            if missing:
                trial = Trial(scenario, folder)
                chosen = moments(trial, given.seed, count)
                for number in missing:
                    rows.append(_row(trial, number, chosen[number]))
                    _write(rows, given.seed, given.output)
                shutil.rmtree(folder / OUTPUT)
    print(json.dumps(summary(rows), indent=1))
    sys.exit(not all(row["right"] for row in rows))


def _row(trial: Trial, number: int, moment: dict[str, Any]) -> dict[str, Any]:
    share = moment.get("after")
    result = trial.kill(**moment if share is None else {"after": share * trial.seconds})
    while not result["killed"]:  # it was faster than the undisturbed run
        assert share is not None
        share /= 2
        result = trial.kill(after=share * trial.seconds)
    moment_text = f"before {trial.changes[moment['before']]}" if share is None else f"after {share:.0%} of the time"
    row = {"command": trial.scenario.name, "kill": number, "moment": moment_text, **result}
    print(json.dumps(row), flush=True)
    return row


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts kills by command and by what they left."""
    return {
        "total": len(rows),
        "right": sum(row["right"] for row in rows),
        "by command": dict(Counter(row["command"] for row in rows)),
        "left": dict(Counter(row["left"] for row in rows)),
    }


def _write(rows: Sequence[dict[str, Any]], seed: int, path: Path) -> None:
    content = {"command": "python -m benchmarks.reliability.kills", "seed": seed, **summary(rows), "kills": list(rows)}
    write_whole(json.dumps(content, indent=1) + "\n", path)


if __name__ == "__main__":
    main()
