"""Cells of an ablation: quantized, run and compared one after another, by one process or several."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bitbrush.artifact.manifest import is_artifact, read_manifest
from bitbrush.artifact.store import save
from bitbrush.artifact.verification import artifact_digest
from bitbrush.bench.experiments.ablate.cells import Cell, Provenance, read_cell, write_cell
from bitbrush.bench.experiments.ablate.folder import CELLS, Folder, rounded_of, weights_key
from bitbrush.bench.experiments.ablate.images import Reference, measured
from bitbrush.bench.experiments.ablate.job import AblationJob
from bitbrush.bench.experiments.ablate.recipes import Setting
from bitbrush.bench.experiments.candidates import open_candidate, with_scheduler_of
from bitbrush.bench.experiments.cell_store import FailedCell
from bitbrush.bench.experiments.protocol import ANOTHER_SEED
from bitbrush.bench.experiments.results import versions
from bitbrush.bench.images.gallery import slug
from bitbrush.methods.stages.round_weights import RECORD_TRAJECTORIES, ROUND_WEIGHTS
from bitbrush.quantization.quantize import quantize
from bitbrush.session.digests import json_digest
from bitbrush.session.progress import Progress

Tell = Callable[[str], None]


@dataclass
class Ablation:
    """Part of one process in an ablation.

    Args:
        job: The ablation.
        folder: Its folder.
        progress: Callback that receives progress reports.
        tell: Callback that receives a line whenever a cell begins or ends.
    """

    job: AblationJob
    folder: Folder
    progress: Progress
    tell: Tell
    _seconds: list[float] = field(default_factory=list)

    @property
    def reference(self) -> Reference:
        """Full precision's images."""
        return Reference(self.job, self.folder)

    def prepare(self) -> None:
        """Generates full precision's images, and those from another seed, in one process; others wait."""
        self.folder.require_own(self.job.facts())
        with self.folder.alone("full-precision"):
            self.reference.make(self.progress)
            if not self.floor_path.exists():
                pipe = self.job.protocol.choice.place(self.job.pipe)
                write_cell(
                    measured(pipe, self.reference, self.progress, seed=self.job.protocol.seed + 1), self.floor_path
                )
                self.job.pipe.to("cpu")

    @property
    def floor_path(self) -> Path:
        """File of the cell of another seed."""
        return self.folder.root / CELLS / f"{slug(ANOTHER_SEED)}-{self.job.cell_digest(None)[:10]}.safetensors"

    def floor(self) -> Cell:
        """Reads the cell of another seed."""
        cell = read_cell(self.floor_path)
        assert isinstance(cell, Cell)
        return cell

    def path(self, setting: Setting) -> Path:
        """Returns the file of a cell."""
        return self.folder.cell(setting, self.job.cell_digest(setting))

    def finished(self) -> dict[Setting, Cell | FailedCell]:
        """Reads all finished cells."""
        paths = {setting: self.path(setting) for setting in self.job.settings}
        return {setting: read_cell(path) for setting, path in paths.items() if path.exists()}

    def work(self) -> Iterator[Setting]:
        """Measures the missing cells, failed ones again, and yields each recipe after it.

        Cells that another process has claimed are left to it.
        """
        failed = {setting for setting, cell in self.finished().items() if isinstance(cell, FailedCell)}
        todo = [setting for setting in self.job.settings if self._is_missing(setting, failed)]
        total = len(self.job.settings)
        while cell := self._take(todo, failed):
            setting, outcome = cell
            left = sum(self._is_missing(other, failed) for other in todo)
            self.tell(f"{setting.title}: {outcome}; {total - left} of {total} are there{self._time_left(left)}")
            yield setting

    def _is_missing(self, setting: Setting, failed: set[Setting]) -> bool:
        return setting in failed or not self.path(setting).exists()

    def _take(self, todo: list[Setting], failed: set[Setting]) -> tuple[Setting, str] | None:
        """Measures an unclaimed cell; one whose weights another process is rounding only if there is no other."""
        missing = [setting for setting in todo if self._is_missing(setting, failed)]
        waiting = [setting for setting in missing if self._waits(setting)]
        for setting in [*(setting for setting in missing if setting not in waiting), *waiting]:
            with self.folder.claimed(setting.file_name) as is_mine:
                if not is_mine or not self._is_missing(setting, failed):
                    continue
                failed.discard(setting)
                self.tell(f"{setting.title} ...")
                began = time.monotonic()
                outcome = self._make(setting)
                self._seconds.append(time.monotonic() - began)
                return setting, outcome
        return None

    def _make(self, setting: Setting) -> str:
        cell: Cell | FailedCell
        try:
            cell = self._measured(setting)
        except (ValueError, RuntimeError) as error:  # what recipes, models and torch refuse
            cell = FailedCell(f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")
            self.folder.clear_work(setting)
        write_cell(cell, self.path(setting))
        if isinstance(cell, FailedCell):
            return f"failed: {cell.problem}"
        shares = ", ".join(f"{name} {values.psnr.mean():.2f} dB" for name, values in cell.sets.items())
        return f"{shares}, {self._seconds_text(cell)}"

    def _seconds_text(self, cell: Cell) -> str:
        return f"quantized in {cell.provenance.seconds:.0f} s" if cell.provenance else ""

    def _time_left(self, cells: int) -> str:
        if not cells:
            return ""
        minutes = sum(self._seconds) / len(self._seconds) * cells / 60
        return f", {minutes:.0f} min left if this process makes them all"

    def _waits(self, setting: Setting) -> bool:
        key = weights_key(setting.recipe)
        if key is None or is_artifact(self.folder.artifact(setting)):
            return False
        with self.folder.claimed(_weights(key)) as free:
            return not free

    def _measured(self, setting: Setting) -> Cell:
        job, artifact = self.job, self.folder.artifact(setting)
        if not is_artifact(artifact):
            self._quantize(setting)
        protocol = job.protocol
        source = str(artifact)
        subject, pipe = open_candidate(
            setting.title, source, job.reference, protocol.plan, protocol.choice, options=job.options
        )
        manifest = read_manifest(artifact)
        provenance = Provenance(
            artifact=artifact_digest(artifact),
            weight_bits=_average_weight_bits(manifest),
            activation_bits=subject.activation_bits,
            denoiser_mib=subject.denoiser_mib,
            costs=self._costs(setting, manifest),
            runtime=subject.runtime,
            int8_layers=subject.int8_layers,
            fallbacks=subject.fallbacks,
        )
        placed = protocol.choice.place(with_scheduler_of(pipe, job.pipe))
        return measured(placed, self.reference, self.progress, seed=protocol.seed, provenance=provenance)

    def _quantize(self, setting: Setting) -> None:
        """Quantizes a recipe, with another's rounded weights where they are the same bit for bit."""
        key = weights_key(setting.recipe)
        if key is None or (source := self.folder.rounding_of(setting)):
            self._save_quantized(setting, None if key is None else source)
            return
        with self.folder.alone(_weights(key)):
            source = self.folder.rounding_of(setting)  # another process may have rounded them meanwhile
            if source is None:
                self._save_quantized(setting, None)
        if source is not None:
            self._save_quantized(setting, source)

    def _save_quantized(self, setting: Setting, weights_of: Path | None) -> None:
        job, protocol = self.job, self.job.protocol
        work = self.folder.work(setting, _work_digest(setting, weights_of))
        quantization = quantize(
            job.pipe,
            setting.recipe,
            protocol.calibration,
            inputs=protocol.inputs,
            generic=protocol.generic,
            rounded=None if weights_of is None else rounded_of(weights_of),
            work=work,
            progress=self.progress,
        )
        save(quantization, self.folder.artifact(setting), base_model=job.model, options=job.options)
        self.folder.share_files(self.folder.artifact(setting))
        self.folder.clear_work(setting)

    def _costs(self, setting: Setting, manifest: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        costs = dict(manifest["cost"])
        source = None if ROUND_WEIGHTS.name in costs else self.folder.rounding_of(setting)
        if source is not None:
            shared = read_manifest(source)["cost"]
            names = [name for name in (RECORD_TRAJECTORIES.name, ROUND_WEIGHTS.name) if name in shared]
            costs = {name: shared[name] for name in names} | costs
        keys = ("seconds", "denoiser_calls_per_batch")
        return {phase: {key: cost[key] for key in keys} for phase, cost in costs.items()}


def _work_digest(setting: Setting, weights_of: Path | None) -> str:
    """Returns a digest of everything that must match to resume an interrupted quantization."""
    facts = {
        "recipe": setting.recipe.to_dict(),
        "weights": weights_of and artifact_digest(weights_of),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    return json_digest(facts)


def _weights(key: str) -> str:
    return f"weights-{key[:16]}"


def _average_weight_bits(manifest: Mapping[str, Any]) -> float:
    """Averages bits by number of weights, without layers next to the latents; branches count to their layers."""
    weights, bits = 0, 0
    for layer in manifest["layers"]:
        size, branch = torch.Size(layer["shape"]).numel(), layer.get("factor", False)
        if layer["excluded"] is None and (branch or not layer["high_precision"]):
            weights += 0 if branch else size
            bits += size * layer["weight_bits"]
    return bits / weights if weights else float("nan")
