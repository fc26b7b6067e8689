"""Measurement of an artifact under other plans than its own, against one recalibrated for each plan.

Both have the same integer weights. The artifact looks up activation ranges by the nearest noise level, the recalibrated
one has ranges of the plan's own steps. Their difference is the price of portability.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from bitbrush.artifact.manifest import read_manifest
from bitbrush.artifact.recalibration import recalibrate
from bitbrush.artifact.store import load_with, save
from bitbrush.bench.experiments.candidates import require_alike, with_scheduler_of
from bitbrush.bench.experiments.cell_store import FailedCell
from bitbrush.bench.experiments.plans.cells import WORST, Fidelity, PlanCell, read_cell, write_cell
from bitbrush.bench.experiments.plans.plan_list import Plan
from bitbrush.bench.experiments.protocol import plan_facts
from bitbrush.bench.experiments.subject import Subject
from bitbrush.bench.images.generation import NonFiniteLatents, generate_each
from bitbrush.bench.metrics.latent_mse import latent_mse
from bitbrush.bench.metrics.psnr import psnr
from bitbrush.methods.recipe import Recipe
from bitbrush.runtime.choose import Choice
from bitbrush.session.digests import json_digest
from bitbrush.session.progress import Advance, Progress, part_of
from bitbrush.sources.input_images import inputs_digest
from bitbrush.sources.schedulers import with_scheduler
from bitbrush.timeline.trajectory import PromptBatch, prompt_batches

CELL_VERSION = 2
"""Version of a cell's file and of how its figures are computed."""
CELLS = "cells"


@dataclass(frozen=True)
class Recalibration:
    """Prompts and further pipeline arguments that an artifact is recalibrated with."""

    prompts: Sequence[str]
    inputs: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class HeldOutPrompts:
    """Prompts that images are compared on.

    Args:
        sets: Prompts by name of the prompt set.
        seed: Seed of the run.
        batch_size: Prompts per denoiser call.
        inputs: Further pipeline arguments, used in turn.
    """

    sets: Mapping[str, Sequence[str]]
    seed: int = 1
    batch_size: int = 16
    inputs: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """Prompts of all sets."""
        return [prompt for prompts in self.sets.values() for prompt in prompts]

    @cached_property
    def batches(self) -> list[PromptBatch]:
        """Batches of all sets together."""
        return prompt_batches(self.texts, self.seed, self.batch_size, inputs=self.inputs)


@dataclass(frozen=True)
class PlansJob:
    """Artifact and full-precision model to compare under several plans.

    Args:
        full: Full-precision pipeline.
        reference: Description of the full-precision model.
        quantized: Pipeline of the artifact.
        subject: Description of the artifact.
        prompts: Held-out prompts.
        recalibration: Prompts to recalibrate with; None compares with full precision alone.
        choice: Runtime of the artifact and of its recalibrated forms.
    """

    full: DiffusionPipeline
    reference: Subject
    quantized: DiffusionPipeline
    subject: Subject
    prompts: HeldOutPrompts
    recalibration: Recalibration | None
    choice: Choice

    @property
    def artifact(self) -> Path:
        """Folder of the artifact."""
        return Path(self.subject.source)


@dataclass(frozen=True)
class _Run:
    """Final latents (N, ...) and images (N, H, W, 3)."""

    latents: NDArray[np.float32]
    images: NDArray[np.uint8]


def measure_plans(
    job: PlansJob, plans: Sequence[Plan], directory: Path, progress: Progress
) -> list[PlanCell | FailedCell]:
    """Measures the plans; cells that ``directory`` contains are not measured again.

    The name of a cell's file has a digest of everything that determines its figures, so a cell of another artifact,
    plan, prompt or runtime is never used. Images that become NaN make a FailedCell.

    Returns:
        Cells in the order of the plans.

    Raises:
        ValueError: The pipelines differ in the shape of their latents, or a file is damaged.
    """
    require_alike(job.full, job.quantized)
    manifest = read_manifest(job.artifact)
    paths = {plan: directory / CELLS / f"{plan.name}-{_digest(job, plan)[:12]}.safetensors" for plan in plans}
    calibrated = {plan: is_calibrated(plan, manifest) for plan in plans}
    missing = [plan for plan in plans if not paths[plan].exists()]
    if missing:
        with progress(
            "measuring plans", sum(_cost(job, plan, calibrated=calibrated[plan]) for plan in missing)
        ) as advance:
            for plan in missing:
                write_cell(_measured(job, plan, advance, calibrated=calibrated[plan]), paths[plan])
    return [read_cell(plan, paths[plan]) for plan in plans]


def is_calibrated(planned: Plan, manifest: Mapping[str, Any]) -> bool:
    """Whether an artifact with this manifest is calibrated for the plan."""
    recipe = Recipe().updated(manifest["recipe"])
    calibrated = (manifest["plan"]["scheduler"], replace(recipe.plan, scheduler=None))
    return (planned.scheduler_class, replace(planned.plan, scheduler=None)) == calibrated


def _cost(job: PlansJob, planned: Plan, *, calibrated: bool) -> int:
    """Counts denoiser calls: those of images, and one for each step of a calibration."""
    images = planned.calls * len(job.prompts.batches)
    return 2 * images if job.recalibration is None or calibrated else 3 * images + planned.calls


def _measured(job: PlansJob, planned: Plan, advance: Advance, *, calibrated: bool) -> PlanCell | FailedCell:
    """Measures a plan; an artifact that is calibrated for it is not recalibrated."""
    reference = job.choice.place(with_scheduler(job.full, planned.plan.scheduler))
    try:
        full = _make(reference, job, planned, advance)
        quantized = _make(job.choice.place(with_scheduler_of(job.quantized, reference)), job, planned, advance)
        recalibrated = None
        if job.recalibration is not None and not calibrated:
            with _recalibrated(job, job.recalibration, planned, advance) as pipe:
                recalibrated = _make(job.choice.place(with_scheduler_of(pipe, reference)), job, planned, advance)
    except NonFiniteLatents as error:
        return FailedCell(str(error))
    errors = latent_mse(full.latents, quantized.latents)
    worst = np.argsort(-errors, kind="stable")[:WORST].astype(np.int64)
    return PlanCell(
        planned=planned,
        artifact=_fidelity(full, quantized, worst),
        recalibrated=None if recalibrated is None else _fidelity(full, recalibrated, worst),
        worst=worst,
        full=full.images[worst],
    )


def _make(pipe: DiffusionPipeline, job: PlansJob, planned: Plan, advance: Advance) -> _Run:
    """Generates images with their final latents; the latents of all steps of a large model would fill the memory."""
    parts = generate_each(pipe, job.prompts.batches, planned.plan, progress=part_of(advance))
    batches = [(part.latents.copy(), part.images) for part in parts]
    return _Run(np.concatenate([latents for latents, _ in batches]), np.concatenate([images for _, images in batches]))


@contextmanager
def _recalibrated(
    job: PlansJob, recalibration: Recalibration, planned: Plan, advance: Advance
) -> Iterator[DiffusionPipeline]:
    plan = planned.plan
    keys = {"scheduler": planned.scheduler_class, "steps": plan.steps, "guidance_scale": plan.guidance_scale}
    quantization = recalibrate(
        job.artifact, keys, recalibration.prompts, inputs=recalibration.inputs, progress=part_of(advance)
    )
    with tempfile.TemporaryDirectory() as folder:  # the runtime reads an artifact, not a quantization in memory
        yield load_with(save(quantization, Path(folder) / "artifact"), job.choice)


def _fidelity(full: _Run, run: _Run, worst: NDArray[np.int64]) -> Fidelity:
    return Fidelity(latent_mse(full.latents, run.latents), psnr(full.images, run.images), run.images[worst])


def _digest(job: PlansJob, planned: Plan) -> str:
    """Digest of everything that determines the figures of a cell."""
    recalibration = job.recalibration
    facts = {
        "schema_version": CELL_VERSION,
        "model": job.reference.digest,
        "artifact": job.subject.digest,
        "runtime": job.subject.runtime,
        "plan": plan_facts(with_scheduler(job.full, planned.plan.scheduler), planned.plan),
        "batches": [[batch.prompts, batch.seeds, inputs_digest(batch.inputs)] for batch in job.prompts.batches],
        "recalibration": recalibration and [list(recalibration.prompts), inputs_digest(recalibration.inputs)],
    }
    return json_digest(facts)
