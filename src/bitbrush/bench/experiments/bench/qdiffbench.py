"""QDiffBench (arXiv 2311.06322, section 4): images of quantized pipelines and of their full-precision model.

Images of the reference, of the reference from other seeds (the floor of every distance) and of all candidates are
stored in image sets that later runs share, with the values that figures need: features, paired metrics, defects.
"""

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from bitbrush.bench.experiments.candidates import (
    open_candidate,
    open_reference,
    require_alike,
    with_scheduler_of,
)
from bitbrush.bench.experiments.protocol import ANOTHER_SEED, FEWEST_IMAGES, plan_facts
from bitbrush.bench.experiments.subject import Subject
from bitbrush.bench.images.filling import fill
from bitbrush.bench.images.generation import denoiser_calls, generating_work
from bitbrush.bench.images.image_set import ImageSet, ImageSetError
from bitbrush.bench.images.image_values import ImagePairs, ImageSets, Work
from bitbrush.bench.networks.chosen import Networks
from bitbrush.quantization.quantize import require_inputs
from bitbrush.runtime.choose import Choice, choose_runtime
from bitbrush.session.disk import DiskError
from bitbrush.session.progress import PlannedWork, planned
from bitbrush.session.ranks import RankError, Ranks
from bitbrush.sources.input_images import inputs_digest
from bitbrush.sources.models import ModelOptions
from bitbrush.sources.prompts import PromptSet
from bitbrush.sources.schedulers import with_scheduler
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import prompt_batches


@dataclass(frozen=True)
class Protocol:
    """Settings that determine images and figures.

    Args:
        plan: Sampling plan.
        sets: Prompt sets.
        num_images: Images of each prompt set and seed.
        seeds: Seeds; the floor uses as many seeds above the highest.
        batch_size: Prompts per denoiser call; it changes no image's noise.
        with_latents: Images of each set that store their latents of every step.
        choice: Runtime of the artifacts.
        inputs: Further pipeline arguments, used in turn: ``{"image": [...], "mask_image": [...]}``.
    """

    plan: SamplingPlan
    sets: tuple[PromptSet, ...]
    num_images: int
    seeds: tuple[int, ...] = (1,)
    batch_size: int = 16
    with_latents: int = 32
    choice: Choice = field(default_factory=choose_runtime)
    inputs: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for prompts in self.sets:
            images = self.count(prompts) * len(self.seeds)
            if images < FEWEST_IMAGES:
                raise ValueError(
                    f"prompt set {prompts.name!r} makes {images} images ({self.count(prompts)} prompts, "
                    f"{len(self.seeds)} seeds); intervals need at least {FEWEST_IMAGES}, and figures that "
                    "tell something need hundreds"
                )

    @property
    def floor_seeds(self) -> tuple[int, ...]:
        """Seeds of the floor."""
        return tuple(max(self.seeds) + 1 + index for index in range(len(self.seeds)))

    def facts(self, pipe: DiffusionPipeline) -> dict[str, Any]:
        """Lists what determines images beside weights, prompts and seed, as JSON values; ``pipe`` has the scheduler."""
        facts: dict[str, Any] = {"plan": plan_facts(pipe, self.plan)}
        return {**facts, "inputs": inputs_digest(self.inputs)} if self.inputs else facts

    def count(self, prompts: PromptSet) -> int:
        """Counts the images of a prompt set for each seed."""
        return min(self.num_images, len(prompts.prompts))


@dataclass(frozen=True)
class Entry:
    """Pipeline with its images by prompt set; ``problem`` says why there are none."""

    subject: Subject | None
    name: str
    images: Mapping[str, ImageSets] = field(default_factory=dict)
    problem: str | None = None

    @property
    def seconds_per_image(self) -> float | None:
        """Median over batches of the seconds that denoising an image takes; None where no batch was timed."""
        seconds = [of_batch for images in self.images.values() for of_batch in images.seconds()]
        return statistics.median(seconds) if seconds else None


@dataclass(frozen=True)
class GeneratedImages:
    """All images; ``calls`` counts the denoiser calls of each."""

    reference: Entry
    floor: Entry
    candidates: tuple[Entry, ...]
    scheduler: str
    calls: int

    def measurable(self) -> Iterator[Entry]:
        """Iterates over the floor and the candidates that have images."""
        return (entry for entry in (self.floor, *self.candidates) if entry.problem is None)


def generate_all(
    reference: str,
    candidates: Mapping[str, str],
    protocol: Protocol,
    root: Path,
    work: Work,
    *,
    options: ModelOptions | None = None,
) -> GeneratedImages:
    """Generates the images that are not yet below ``root``.

    A candidate that cannot be loaded or run (damaged, made of other weights, of another shape, an error of another
    package) becomes an entry with its problem and does not affect the others.

    Args:
        reference: Full-precision model.
        candidates: Sources by name.
        protocol: Settings.
        root: Folder of the images.
        work: Processes and progress.
        options: Loading options of the reference.

    Returns:
        All images.

    Raises:
        ValueError: The reference cannot be measured.
    """
    subject, pipe = open_reference(reference, options)
    require_inputs(pipe, protocol.inputs)
    pipe = protocol.choice.place(with_scheduler(pipe, protocol.plan.scheduler))
    work = replace(
        work, progress=planned(work.progress, lambda: _works(pipe, protocol, work.ranks, 2 + len(candidates)))
    )
    made_by = {"model": subject.digest, **protocol.facts(pipe)}
    entries = [
        Entry(subject, name, _fill(pipe, made_by, protocol, seeds, root / "full-precision", work))
        for name, seeds in (("full precision", protocol.seeds), (ANOTHER_SEED, protocol.floor_seeds))
    ]
    work.ranks.wait()
    (batch,) = prompt_batches(protocol.sets[0].prompts[:1], 0, 1, inputs=protocol.inputs)
    calls = denoiser_calls(pipe, protocol.plan, batch)
    others = [
        _candidate(name, source, subject, pipe, protocol, root, work, options=options)
        for name, source in candidates.items()
    ]
    return GeneratedImages(entries[0], entries[1], tuple(others), type(pipe.scheduler).__name__, calls)


def _works(pipe: DiffusionPipeline, protocol: Protocol, ranks: Ranks, entries: int) -> list[PlannedWork]:
    """Lists the images that this process generates: of full precision, of the floor, and of each candidate."""
    works = []
    for prompts in protocol.sets:
        chosen = prompts.prompts[: protocol.count(prompts)]
        batches = ranks.share(prompt_batches(chosen, 0, protocol.batch_size, inputs=protocol.inputs))
        works += [generating_work(pipe, batches, protocol.plan)] * len(protocol.seeds)
    return works * entries


def compute_all(generated: GeneratedImages, networks: Networks, work: Work) -> None:
    """Computes this process's share of the values that figures need, and waits for the other processes."""
    for collection in generated.reference.images.values():
        collection.compute_texts(networks.clip, work)
    for entry in (generated.reference, *generated.measurable()):
        for name, collection in entry.images.items():
            collection.compute_features(networks.extractor, work)
            collection.compute_features(networks.clip, work)
            collection.compute_defects(work)
            for metric in networks.of_images:
                collection.compute_metric(metric, work)
            if entry is not generated.reference:
                ImagePairs(generated.reference.images[name], collection).compute(networks.paired, work)
    work.ranks.wait()


def _candidate(
    name: str,
    source: str,
    reference: Subject,
    pipe: DiffusionPipeline,
    protocol: Protocol,
    root: Path,
    work: Work,
    *,
    options: ModelOptions | None,
) -> Entry:
    subject, images, problem = None, {}, None
    try:
        subject, quantized = open_candidate(name, source, reference, protocol.plan, protocol.choice, options=options)
        require_alike(pipe, quantized)
        quantized = protocol.choice.place(with_scheduler_of(quantized, pipe))
        made_by = {"model": subject.digest, "runtime": subject.runtime, **protocol.facts(pipe)}
        images = _fill(quantized, made_by, protocol, protocol.seeds, root / _folder(name), work)
    except (DiskError, ImageSetError, RankError):
        raise
    except ValueError as error:
        problem = str(error)
    except Exception as error:  # noqa: BLE001 - code of other packages raises anything, and becomes a row
        problem = f"{type(error).__name__}: {error}"
    problem = agreed(problem, work.ranks)
    return Entry(subject, name, images) if problem is None else Entry(None, name, problem=problem)


def agreed(problem: str | None, processes: Ranks) -> str | None:
    """Returns this process's problem, or says that another process has one; it waits for all of them."""
    failed = bool(processes.most(torch.tensor([int(problem is not None)])).item())
    return problem or ("another process could not measure it" if failed else None)


def _fill(
    pipe: DiffusionPipeline,
    made_by: Mapping[str, Any],
    protocol: Protocol,
    seeds: Sequence[int],
    root: Path,
    work: Work,
) -> dict[str, ImageSets]:
    collections = {}
    for prompts in protocol.sets:
        count = protocol.count(prompts)
        opened = [ImageSet.open(root, prompts.name, prompts.prompts, seed=seed, made_by=made_by) for seed in seeds]
        for images in opened:
            fill(
                images,
                pipe,
                protocol.plan,
                count=count,
                with_latents=min(protocol.with_latents, count),
                batch_size=protocol.batch_size,
                inputs=protocol.inputs,
                ranks=work.ranks,
                progress=work.progress,
            )
        collections[prompts.name] = ImageSets(tuple(opened), count)
    return collections


def _folder(name: str) -> str:
    """Turns a candidate's name into a folder's: letters, digits, dot and hyphen."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "candidate"
