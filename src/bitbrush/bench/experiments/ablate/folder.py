"""The folder of an ablation: what is in it, whose it is, and how processes share the work in it."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bitbrush.artifact.manifest import is_artifact, read_manifest
from bitbrush.artifact.store import read_layers
from bitbrush.bench.experiments.ablate.recipes import Setting, given_keys
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

FINGERPRINT, CELLS, ARTIFACTS, REFERENCE = "ablation.json", "cells", "artifacts", "full-precision"
RESULTS, REPORT, MARKDOWN, PLOTS = "results.json", "report.html", "ablation.md", "plots"
_CLAIMS, _WORK = "claims", "work"
KNOWN = (FINGERPRINT, CELLS, ARTIFACTS, REFERENCE, RESULTS, VALUES, REPORT, MARKDOWN, PLOTS, _CLAIMS, _WORK)


@dataclass(frozen=True)
class Folder:
    """Cells, artifacts and pictures of an ablation below ``root``.

    What is finished is a file or folder that is there whole or not at all. What is being made is claimed by locking a
    file, which the system gives back however its process ends.
    """

    root: Path

    def require_own(self, facts: Mapping[str, Any]) -> None:
        """Takes the folder for an ablation with these ``facts``, JSON values by what they are of.

        Raises ValueError, naming what differs, if it is another ablation's, or no ablation's.
        """
        require_own(self.root, KNOWN, "ablation")
        path = self.root / FINGERPRINT
        if not path.exists():
            write_whole(json.dumps(facts, indent=1) + "\n", path)
            return
        theirs = json.loads(path.read_text(encoding="utf-8"))
        unlike = [name for name in facts if facts[name] != theirs.get(name)]
        if unlike:
            raise ValueError(
                f"{self.root} holds an ablation with another {' and another '.join(unlike)}; choose another directory"
            )

    def cell(self, setting: Setting, digest: str) -> Path:
        return self.root / CELLS / f"{setting.file_name}-{digest[:10]}.safetensors"

    def artifact(self, setting: Setting) -> Path:
        return self.root / ARTIFACTS / setting.file_name

    def work(self, setting: Setting, digest: str) -> Path:
        """For the unfinished work of a quantization; ``digest``: of all that decides whether it can go on."""
        return self.root / _WORK / f"{setting.file_name}-{digest[:10]}"

    def clear_work(self, setting: Setting) -> None:
        for path in (self.root / _WORK).glob(f"{setting.file_name}-*"):
            shutil.rmtree(path)

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Whether this process alone now does what ``name`` stands for; False where another does."""
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
        """As :meth:`claimed`, once no other process does."""
        with self._lock(name):
            yield

    def _lock(self, name: str) -> FileLock:
        path = self.root / _CLAIMS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)

    def rounding_of(self, setting: Setting) -> Path | None:
        """The artifact of another recipe, quantized here, whose weights are this one's too."""
        key = weights_key(setting.recipe)
        for path in sorted((self.root / ARTIFACTS).glob("*")) if key else ():
            if path != self.artifact(setting) and is_artifact(path):
                manifest = read_manifest(path)
                known = ROUND_WEIGHTS.name in manifest["cost"] and removed_setting(manifest["recipe"]) is None
                if known and weights_key(Recipe().updated(manifest["recipe"])) == key:
                    return path
        return None

    def share_files(self, artifact: Path) -> None:
        """Lets the artifact have its text encoder, VAE and what else is alike in common with another, on the disk."""
        own = read_manifest(artifact)["files"]
        for other in sorted(artifact.parent.glob("*")):
            if other == artifact or not is_artifact(other):
                continue
            theirs = read_manifest(other)["files"]
            for name in [name for name, digest in own.items() if theirs.get(name) == digest]:
                _link(other / name, artifact / name)
            return


def weights_key(recipe: Recipe) -> str | None:
    """Returns a digest that recipes with equal weight integers share; None where no other recipe has them."""
    given = given_keys(recipe)
    shared = METHODS[recipe.method].shares_weights
    if not shared or any(KEYS[name].decides is Decides.NETWORK for name in given):
        return None
    measured = recipe.weight_allocation is WeightAllocation.MEASURED
    deciding = {Decides.WEIGHTS, Decides.SENSITIVITIES} if measured else {Decides.WEIGHTS}
    deciding |= {Decides.BRANCHES} if recipe.low_rank else set()
    keys = {name: value for name, value in given.items() if KEYS[name].decides in deciding}
    return json_digest(keys)


def rounded_of(artifact: Path) -> dict[str, RoundedLayer]:
    return {layer.name: RoundedLayer(layer.weight, layer.bias) for layer in read_layers(artifact)}


def _link(source: Path, target: Path) -> None:
    """The same file under both names; where the disk has no such links the copy stays."""
    with suppress(OSError), writing_whole(target) as partial:
        os.link(source, partial)
