"""Full precision's images, stored batch by batch, and their comparison with another pipeline's."""

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
    """One batch of full precision's images with their CLIP scores, (N,)."""

    generated: Generated
    clip: NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """Full precision's images of an ablation; one batch at a time is in memory."""

    job: AblationJob
    folder: Folder

    def make(self, progress: Progress) -> None:
        """Generates the images that are missing."""
        job = self.job
        missing = [pair for prompts in job.protocol.sets for pair in self._files(prompts) if not pair[0].exists()]
        if not missing:
            return
        pipe = job.protocol.choice.place(job.pipe)
        calls = denoiser_calls(pipe, job.protocol.plan, missing[0][1])
        with progress("full precision", calls * len(missing)) as advance:
            for path, batch in missing:
                (images,) = generate_each(pipe, [batch], job.protocol.plan, progress=part_of(advance))
                scores = _scores(job.protocol.judge, images, batch)
                write_cell(StoredCell({"": {"images": images.images, "steps": images.steps, "clip": scores}}), path)
        job.pipe.to("cpu")  # where it is quantized

    def parts(self, prompts: PromptSet) -> Iterator[ReferencePart]:
        """Reads the images of a prompt set batch by batch."""
        for path, _ in self._files(prompts):
            stored = read_cell(path)
            assert not isinstance(stored, FailedCell)
            arrays = stored.groups[""]
            yield ReferencePart(Generated(arrays["images"], arrays["steps"]), arrays["clip"])

    def clip_scores(self) -> dict[str, NDArray[np.float64]]:
        """Reads the CLIP scores by prompt set, (N,) each."""
        sets = self.job.protocol.sets
        return {prompts.name: np.concatenate([part.clip for part in self.parts(prompts)]) for prompts in sets}

    def samples(self, prompts: PromptSet) -> NDArray[np.uint8]:
        """Reads the first images of a prompt set, as many as a cell stores."""
        images = np.concatenate([part.generated.images[:SAMPLES] for part in self.parts(prompts)])
        return images[:SAMPLES]

    def _files(self, prompts: PromptSet) -> Iterator[tuple[Path, PromptBatch]]:
        root = self.folder.root / REFERENCE / f"{slug(prompts.name)}-{self.job.images_digest()[:10]}"
        for index, batch in enumerate(self.job.protocol.batches(prompts, self.job.protocol.seed)):
            yield root / f"{index:04d}.safetensors", batch


def measured(
    pipe: DiffusionPipeline,
    reference: Reference,
    progress: Progress,
    *,
    seed: int,
    provenance: Provenance | None = None,
) -> Cell:
    """Generates images and compares them with full precision's.

    Args:
        pipe: Pipeline.
        reference: Full precision's images.
        progress: Callback that receives progress reports.
        seed: Seed of the images.
        provenance: How the pipeline was made.

    Returns:
        The cell.

    Raises:
        NonFiniteLatents: The latents become NaN or infinite.
    """
    protocol = reference.job.protocol
    batches = {prompts.name: protocol.batches(prompts, seed) for prompts in protocol.sets}
    calls = denoiser_calls(pipe, protocol.plan, next(iter(batches.values()))[0])
    with progress("generating", calls * sum(map(len, batches.values()))) as advance:
        sets = {}
        for prompts in protocol.sets:
            of_set = batches[prompts.name]
            runs = generate_each(pipe, of_set, protocol.plan, progress=part_of(advance))
            parts = [
                _against(part.generated, generated, _scores(protocol.judge, generated, batch))
                for part, generated, batch in zip(reference.parts(prompts), runs, of_set, strict=True)
            ]
            sets[prompts.name] = _joined(parts)
    return Cell(sets, provenance)


def _against(full: Generated, run: Generated, clip: NDArray[np.float64]) -> SetValues:
    by_step = latent_mse_by_step(full, run)
    return SetValues(psnr(full.images, run.images), by_step[:, -1], by_step, clip, run.images[:SAMPLES].copy())


def _joined(parts: list[SetValues]) -> SetValues:
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    return SetValues(**{**joined, "images": joined["images"][:SAMPLES]})


def _scores(judge: Clip, run: Generated, batch: PromptBatch) -> NDArray[np.float64]:
    return clip_score(judge.features(run.images), judge.text_features(batch.prompts))
