"""Full precision's pictures, kept batch by batch, and another pipeline's against them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from bitbrush.bench.experiments.ablate.cells import SAMPLES, Cell, Provenance, SetValues
from bitbrush.bench.experiments.ablate.folder import REFERENCE, Folder
from bitbrush.bench.experiments.ablate.job import AblationJob
from bitbrush.bench.experiments.cell_store import FailedCell, StoredCell, read_cell, write_cell
from bitbrush.bench.images.gallery import slug
from bitbrush.bench.images.generation import Generated, denoiser_calls, generate_each
from bitbrush.bench.images.paired_runs import latent_mse_by_step
from bitbrush.bench.metrics.clip_score import clip_score
from bitbrush.bench.metrics.psnr import psnr
from bitbrush.bench.networks.clip import Clip
from bitbrush.session.progress import Progress, part_of
from bitbrush.sources.prompts import PromptSet
from bitbrush.timeline.trajectory import PromptBatch


@dataclass(frozen=True)
class ReferencePart:
    """One batch of full precision's pictures, with their CLIP scores ``(N,)``."""

    generated: Generated
    clip: NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """Full precision's pictures of an ablation, of which one batch at a time is in memory."""

    job: AblationJob
    folder: Folder

    def make(self, progress: Progress) -> None:
        """Those that are not there yet."""
        job = self.job
        missing = [(path, batch) for one in job.protocol.sets for path, batch in self._files(one) if not path.exists()]
        if not missing:
            return
        pipe = job.protocol.choice.place(job.pipe)
        calls = denoiser_calls(pipe, job.protocol.plan, missing[0][1])
        with progress("full precision", calls * len(missing)) as advance:
            for path, batch in missing:
                (made,) = generate_each(pipe, [batch], job.protocol.plan, progress=part_of(advance))
                scores = _scores(job.protocol.judge, made, batch)
                write_cell(StoredCell({"": {"images": made.images, "steps": made.steps, "clip": scores}}), path)
        job.pipe.to("cpu")  # where it is quantized

    def parts(self, one: PromptSet) -> Iterator[ReferencePart]:
        for path, _ in self._files(one):
            stored = read_cell(path)
            assert not isinstance(stored, FailedCell)
            arrays = stored.groups[""]
            yield ReferencePart(Generated(arrays["images"], arrays["steps"]), arrays["clip"])

    def clip_scores(self) -> dict[str, NDArray[np.float64]]:
        """By prompt set, ``(N,)``."""
        return {one.name: np.concatenate([part.clip for part in self.parts(one)]) for one in self.job.protocol.sets}

    def samples(self, one: PromptSet) -> NDArray[np.uint8]:
        """The first pictures of a set, as many as a cell keeps."""
        pictures = np.concatenate([part.generated.images[:SAMPLES] for part in self.parts(one)])
        return pictures[:SAMPLES]

    def _files(self, one: PromptSet) -> Iterator[tuple[Path, PromptBatch]]:
        root = self.folder.root / REFERENCE / f"{slug(one.name)}-{self.job.images_digest()[:10]}"
        for index, batch in enumerate(self.job.protocol.batches(one, self.job.protocol.seed)):
            yield root / f"{index:04d}.safetensors", batch


def measured(
    pipe: DiffusionPipeline,
    reference: Reference,
    progress: Progress,
    *,
    seed: int,
    provenance: Provenance | None = None,
) -> Cell:
    """Pictures of ``pipe`` with ``seed``, against full precision's.

    Raises NonFiniteLatents where there are none.
    """
    protocol = reference.job.protocol
    batches = {one.name: protocol.batches(one, seed) for one in protocol.sets}
    calls = denoiser_calls(pipe, protocol.plan, next(iter(batches.values()))[0])
    with progress("generating", calls * sum(map(len, batches.values()))) as advance:
        sets = {}
        for one in protocol.sets:
            own = generate_each(pipe, batches[one.name], protocol.plan, progress=part_of(advance))
            parts = [
                _against(part.generated, generated, _scores(protocol.judge, generated, batch))
                for part, generated, batch in zip(reference.parts(one), own, batches[one.name], strict=True)
            ]
            sets[one.name] = _joined(parts)
    return Cell(sets, provenance)


def _against(full: Generated, own: Generated, clip: NDArray[np.float64]) -> SetValues:
    by_step = latent_mse_by_step(full, own)
    return SetValues(psnr(full.images, own.images), by_step[:, -1], by_step, clip, own.images[:SAMPLES].copy())


def _joined(parts: list[SetValues]) -> SetValues:
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    return SetValues(**{**joined, "images": joined["images"][:SAMPLES]})


def _scores(judge: Clip, made: Generated, batch: PromptBatch) -> NDArray[np.float64]:
    return clip_score(judge.features(made.images), judge.text_features(batch.prompts))
