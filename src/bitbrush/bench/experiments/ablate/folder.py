"""Folder of an ablation: its files, the ablation it belongs to, and the claims by which processes share work."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bitbrush.artifact.manifest import is_artifact, read_manifest
from bitbrush.artifact.store import read_layers
from bitbrush.bench.experiments.ablate.recipes import Setting, given_keys
from bitbrush.bench.experiments.cell_store import damaged
from bitbrush.bench.experiments.folders import require_own
from bitbrush.bench.experiments.value_table import VALUES
from bitbrush.methods import METHODS
from bitbrush.methods.keys import Decides
from bitbrush.methods.recipe import KEYS, Recipe, WeightAllocation
from bitbrush.methods.removed import removed_setting
from bitbrush.methods.stages.round_weights import ROUND_WEIGHTS
from bitbrush.rounding.nearest import RoundedLayer
from bitbrush.session.digests import json_digest
from bitbrush.session.disk import write_whole, writing_whole
from bitbrush.session.replacing import remove_folder

FINGERPRINT, CELLS, ARTIFACTS, REFERENCE = "ablation.json", "cells", "artifacts", "full-precision"
RESULTS, REPORT, MARKDOWN, PLOTS = "results.json", "report.html", "ablation.md", "plots"
_CLAIMS, _WORK = "claims", "work"
KNOWN = (FINGERPRINT, CELLS, ARTIFACTS, REFERENCE, RESULTS, VALUES, REPORT, MARKDOWN, PLOTS, _CLAIMS, _WORK)


@dataclass(frozen=True)
class Folder:
    """Cells, artifacts and images of an ablation below ``root``.

    Finished work is a complete file or folder. A process claims unfinished work by locking a file; the system releases
    the lock however the process ends.
    """

    root: Path

    def require_own(self, facts: Mapping[str, Any]) -> None:
        """Reserves the folder for an ablation with these facts.

        Args:
            facts: JSON values that all artifacts depend on, by a description.

        Raises:
            ValueError: The folder belongs to another ablation, or to none; the message names the difference.
        """
        require_own(self.root, KNOWN, "ablation")
        path = self.root / FINGERPRINT
        if not path.exists():
            write_whole(json.dumps(facts, indent=1) + "\n", path)
            return
        try:
            recorded = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise damaged(path, error) from error
        different = [name for name in facts if facts[name] != recorded.get(name)]
        if different:
            names = " and another ".join(different)
            raise ValueError(f"{self.root} holds an ablation with another {names}; choose another directory")

    def cell(self, setting: Setting, digest: str) -> Path:
        """Returns the path of a cell; ``digest``: of everything that determines its values."""
        return self.root / CELLS / f"{setting.file_name}-{digest[:10]}.safetensors"

    def artifact(self, setting: Setting) -> Path:
        """Returns the path of a recipe's artifact."""
        return self.root / ARTIFACTS / setting.file_name

    def work(self, setting: Setting, digest: str) -> Path:
        """Returns the folder of unfinished work; ``digest``: of everything that must match to resume it."""
        return self.root / _WORK / f"{setting.file_name}-{digest[:10]}"

    def clear_work(self, setting: Setting) -> None:
        """Removes the unfinished work of a recipe."""
        for path in (self.root / _WORK).glob(f"{setting.file_name}-*"):
            remove_folder(path)

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Claims the work called ``name`` while entered; yields False where another process has it."""
        lock = self._lock(name)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Claims the work called ``name`` while entered, after waiting for other processes."""
        with self._lock(name):
            yield

    def _lock(self, name: str) -> FileLock:
        path = self.root / _CLAIMS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)

    def rounding_of(self, setting: Setting) -> Path | None:
        """Finds the artifact of another recipe of this ablation that has the same integer weights."""
        key = weights_key(setting.recipe)
        for path in sorted((self.root / ARTIFACTS).glob("*")) if key else ():
            if path != self.artifact(setting) and is_artifact(path):
                manifest = read_manifest(path)
                is_usable = ROUND_WEIGHTS.name in manifest["cost"] and removed_setting(manifest["recipe"]) is None
                if is_usable and weights_key(Recipe().updated(manifest["recipe"])) == key:
                    return path
        return None

    def share_files(self, artifact: Path) -> None:
        """Links the files that the artifact shares with another one, such as text encoder and VAE."""
        digests = read_manifest(artifact)["files"]
        for other in sorted(artifact.parent.glob("*")):
            if other == artifact or not is_artifact(other):
                continue
            others = read_manifest(other)["files"]
            for name in [name for name, digest in digests.items() if others.get(name) == digest]:
                _link(other / name, artifact / name)
            return


def weights_key(recipe: Recipe) -> str | None:
    """Returns a digest that recipes with equal weight integers share; None where no other recipe has them."""
    changed = given_keys(recipe)
    shared = METHODS[recipe.method].shares_weights
    if not shared or any(KEYS[name].decides is Decides.NETWORK for name in changed):
        return None
    measured = recipe.weight_allocation is WeightAllocation.MEASURED
    deciding = {Decides.WEIGHTS, Decides.SENSITIVITIES} if measured else {Decides.WEIGHTS}
    deciding |= {Decides.BRANCHES} if recipe.low_rank else set()
    keys = {name: value for name, value in changed.items() if KEYS[name].decides in deciding}
    return json_digest(keys)


def rounded_of(artifact: Path) -> dict[str, RoundedLayer]:
    """Reads the rounded layers of an artifact by name."""
    return {layer.name: RoundedLayer(layer.weight, layer.bias) for layer in read_layers(artifact)}


def _link(source: Path, target: Path) -> None:
    """Replaces ``target`` by a hard link to ``source``; without hard links the copy stays."""
    with suppress(OSError), writing_whole(target) as partial:
        os.link(source, partial)
