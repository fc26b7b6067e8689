"""The main job: from a full-precision pipeline and a recipe to a quantized one."""

import copy
import inspect
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.auto_pipeline import (
    AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    AUTO_INPAINT_PIPELINES_MAPPING,
)
from torch import nn

from bitbrush.artifact.identity import model_digest
from bitbrush.artifact.schedulers import with_scheduler
from bitbrush.artifact.work import job_facts, require_same_job
from bitbrush.methods import METHODS
from bitbrush.methods.low_rank import with_branches
from bitbrush.methods.method import AllocatedBits, Job, Outcome
from bitbrush.methods.recipe import Recipe, SkipInputs, WeightAllocation
from bitbrush.methods.smoothing import smoothed
from bitbrush.network.families import family_of
from bitbrush.network.family import Family
from bitbrush.network.generic import generic_family
from bitbrush.network.held import HALF, in_float32, twin, widen_
from bitbrush.network.layers import LayerSpec
from bitbrush.network.skip_inputs import with_split_skips
from bitbrush.rounding.nearest import RoundedLayer
from bitbrush.runtime.reference import ReferenceRuntime
from bitbrush.runtime.refusals import refuse_unquantized
from bitbrush.timeline.allocator import share_heap
from bitbrush.timeline.cost import CostLedger, PhaseCost
from bitbrush.timeline.journal import Journal, open_journal
from bitbrush.timeline.plan import Relaxation, average_bits
from bitbrush.timeline.progress import PlannedWork, Progress, planned, silent
from bitbrush.timeline.ranks import ALONE, Ranks, ranks
from bitbrush.timeline.spool import PROCESSOR, ROOM, Room, Spool
from bitbrush.timeline.trajectory import PromptBatch, planned_timesteps, prompt_batches


@dataclass(frozen=True)
class Quantization:
    """A quantized pipeline in memory. ``source``: full precision with the recipe's scheduler; ``costs`` by phase.

    Where the denoiser's channels were rescaled, its convolutions split or its layers branched, that is so in
    ``source``, and ``original`` is the pipeline that was given; None where both are the same.

    ``recalibrated``: ``manifest`` and ``digest`` of the artifact whose weights these are, if they were not rounded
    here; ``source`` then has those weights. ``processes``: how many shared the work; ``costs`` are this one's.
    """

    source: DiffusionPipeline
    family: Family
    recipe: Recipe
    outcome: Outcome
    costs: dict[str, PhaseCost]
    recalibrated: Mapping[str, Any] | None = None
    processes: int = 1
    original: DiffusionPipeline | None = None

    @property
    def average_activation_bits(self) -> float:
        """Over all denoiser calls of the plan; the edge layers, which always have 16, not counted.

        Where layers differ they count by their multiplications.
        """
        if self.outcome.average_activation_bits is not None:
            return self.outcome.average_activation_bits
        relax = self.recipe.relax if isinstance(self.recipe.relax, Relaxation) else None
        return average_bits(self.recipe.activations, relax, self.outcome.planned)

    @property
    def rounded(self) -> dict[str, RoundedLayer]:
        """The weights by layer name, for another quantization that differs in activations alone."""
        return {layer.name: RoundedLayer(layer.weight, layer.bias, layer.first) for layer in self.outcome.layers}

    def pipeline(self) -> DiffusionPipeline:
        """A pipeline that shares everything with the source but has its denoiser quantized (reference runtime).

        Its weights are in float32, as fast as they run and as large.
        """
        denoiser = twin(getattr(self.source, self.family.component))
        refuse_unquantized(denoiser)
        ReferenceRuntime().lower(denoiser, self.outcome.layers)
        widen_(denoiser)  # what was excluded
        pipe = copy.copy(self.source)
        setattr(pipe, self.family.component, denoiser)
        pipe.scheduler = copy.deepcopy(self.source.scheduler)
        return pipe


def quantize(
    pipe: DiffusionPipeline,
    recipe: Recipe,
    prompts: Sequence[str],
    *,
    inputs: Mapping[str, Sequence[Any]] | None = None,
    generic: bool = False,
    rounded: Mapping[str, RoundedLayer] | None = None,
    work: Path | None = None,
    progress: Progress = silent,
) -> Quantization:
    """Quantizes the denoiser of ``pipe``, which itself stays as it is, by the recipe's method.

    All is computed where the denoiser is: on a card after ``pipe.to("cuda")``. The result's integers are on the
    processor. Noise is drawn there, too: a card's result differs by the order of its sums alone.

    ``prompts``: calibration prompts, of which the first ``recipe.num_prompts`` are used. ``inputs``: what else the
    pipeline is given, a value per prompt under its own name for it, as ``{"image": [...], "mask_image": [...]}``.
    ``generic``: quantize the layers of whatever denoiser there is without regard to its architecture. ``rounded``:
    weights of an earlier quantization of the same pipeline with the same weight keys, which saves rounding them again.
    ``work``: a folder for every reconstructed block and calibrated step, from which the same call goes on, after
    whatever ended it, to the same result bit for bit. Remove it when the result is saved. Samples of learned rounding
    wait on the disk there, in files without a name; without it, in the system's folder for temporary files.

    Networks in float16 or bfloat16 stay so and are widened layer by layer for each call: what comes out is what comes
    of the same weights in float32, bit for bit. ``source`` of the result is then a twin of ``pipe`` that does so.

    Where torchrun started several processes, or torch.distributed has been initialized (with gloo), each calls this
    with the same arguments and shares the work by the prompts; each is given the same result, to be saved by one.
    If one fails, the others raise RankError.

    Raises ValueError for an unknown method, denoiser or scheduler, for a denoiser in another type, for too few prompts,
    for ``rounded`` weights of other layers or bits, for ``work`` of another quantization, for inputs that the pipeline
    misses or does not take, for fewer prompts than processes, for several processes on a card, or if the checkpoint or
    its activations hold NaN.
    """
    with ranks() as own, own.together():
        job = quantization_job(
            pipe, recipe, prompts, inputs=inputs, generic=generic, rounded=rounded, progress=progress, ranks=own
        )
        return carry_out(job, work)


def carry_out(job: Job, work: Path | None = None) -> Quantization:
    """What :func:`quantize` does with a job, once it is checked."""
    require_same_job(job)
    given = job.original or job.pipe
    if work is not None:
        job = replace(job, journal=_opened(work, job, given))
    job = replace(job, spool=Spool(work or Path(tempfile.gettempdir()), Room(ROOM)))
    job = replace(job, progress=planned(job.progress, lambda: quantization_works(job)))
    prepared = smoothed(job)
    made = run_method(prepared)
    return made if prepared is job else replace(made, original=given)


def quantization_works(job: Job) -> list[PlannedWork]:
    """What carrying the job out will report of."""
    calls = len(planned_timesteps(job.pipe, job.family.component, job.recipe.plan, job.batches[0]))
    return [work for phase in METHODS[job.recipe.method].phases(job) for work in phase.works(calls)]


def _opened(work: Path, job: Job, given: DiffusionPipeline) -> Journal:
    """The job's journal; of several processes the first alone has its folder."""
    if not job.ranks.leads:
        return Journal(None, job.ranks)
    return open_journal(work, {"model": model_digest(given), **job_facts(job)}, job.ranks)


def run_method(job: Job) -> Quantization:
    """What the job's method makes of the job's denoiser as it is."""
    outcome = METHODS[job.recipe.method].run(job)
    costs, world = job.costs.phases, job.ranks.world
    return Quantization(job.pipe, job.family, job.recipe, outcome, costs, processes=world, original=job.original)


def quantization_job(
    pipe: DiffusionPipeline,
    recipe: Recipe,
    prompts: Sequence[str],
    *,
    inputs: Mapping[str, Sequence[Any]] | None = None,
    generic: bool = False,
    rounded: Mapping[str, RoundedLayer] | None = None,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
) -> Job:
    """What :func:`quantize` carries out, checked as it says; nothing is computed yet.

    ``ranks``: the processes that share it, of which the first alone reports ``progress``.
    """
    share_heap()  # before the first call is suspended in a thread of its own
    if recipe.method not in METHODS:
        raise ValueError(f"method is {recipe.method!r}; known are {', '.join(METHODS)}")
    batches = calibration_batches(recipe, prompts, inputs)
    if recipe.num_prompts < ranks.world:
        raise ValueError(
            f"num_prompts is {recipe.num_prompts} for {ranks.world} processes, of which each needs one; start fewer "
            "(torchrun --nproc-per-node), or use more prompts"
        )
    require_inputs(pipe, inputs or {})
    _require_one_card(pipe, ranks)
    family = generic_family(pipe) if generic else family_of(pipe)
    _require_float(getattr(pipe, family.component), family.component)
    shown = progress if ranks.leads else silent
    source = _in_float32(with_scheduler(pipe, recipe.scheduler))
    job = Job(source, family, recipe, batches, shown, CostLedger(), rounded, ranks=ranks)
    if recipe.skip_inputs is SkipInputs.SPLIT:
        job = _with_split_skips(job)
    job = with_branches(job)
    if rounded is not None and recipe.weight_allocation is WeightAllocation.MEASURED:
        job = replace(job, allocated=AllocatedBits({name: layer.weight.grid.bits for name, layer in rounded.items()}))
    layers = job.calibration.layers  # refuses what the recipe excludes in vain before a folder is made
    if rounded is not None:
        _require_same_layers(rounded, layers)
    return job


def _with_split_skips(job: Job) -> Job:
    """The same job of a pipeline that computes the same, if any convolution had to be split for it."""
    denoiser = with_split_skips(job.denoiser, job.family, job.recipe.exclude)
    if denoiser is job.denoiser:
        return job
    pipe = copy.copy(job.pipe)
    setattr(pipe, job.family.component, denoiser)
    return replace(job, pipe=pipe, original=job.pipe)


def calibration_batches(
    recipe: Recipe, prompts: Sequence[str], inputs: Mapping[str, Sequence[Any]] | None = None
) -> tuple[PromptBatch, ...]:
    """The prompts that a recipe calibrates with, of those that are given. Raises ValueError if these are too few."""
    if len(prompts) < recipe.num_prompts:
        raise ValueError(
            f"num_prompts is {recipe.num_prompts}, but only {len(prompts)} calibration prompts are given; "
            "lower it or give more"
        )
    return tuple(prompt_batches(prompts[: recipe.num_prompts], recipe.seed, recipe.batch_size, inputs=inputs))


def require_inputs(pipe: DiffusionPipeline, inputs: Mapping[str, Any]) -> None:
    """Raises ValueError, naming what is missing, where a pipeline that makes pictures from pictures is given none."""
    from_pictures = (*AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.values(), *AUTO_INPAINT_PIPELINES_MAPPING.values())
    taken = inspect.signature(pipe.__call__).parameters
    missing = [name for name in ("image", "mask_image") if name in taken and name not in inputs]
    if missing and type(pipe) in from_pictures:
        raise ValueError(
            f"{type(pipe).__name__} makes pictures from pictures; give {' and '.join(missing)}: "
            'inputs={"image": [...]}, or the folders --images (and --masks) on the command line'
        )


def _require_one_card(pipe: DiffusionPipeline, ranks: Ranks) -> None:
    if ranks.world > 1 and pipe.device != PROCESSOR:
        raise ValueError(
            f"the pipeline is on {pipe.device}, and {ranks.world} processes share the work: they exchange tensors of "
            "the processor only; start one process, or leave the pipeline on the processor"
        )


def _require_float(denoiser: nn.Module, component: str) -> None:
    others = {parameter.dtype for parameter in denoiser.parameters()} - {torch.float32, *HALF}
    if others:
        raise ValueError(
            f"the pipeline's {component} holds {', '.join(sorted(map(str, others)))}; ranges and rounding are found in "
            "float32, to which only half precision is widened: load it with bitbrush.load_full_precision"
        )


def _in_float32(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """The pipeline, or one like it whose networks compute in float32; the one given stays as it is."""
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    wide = {name: in_float32(part) for name, part in networks.items()}
    if all(wide[name] is part for name, part in networks.items()):
        return pipe
    own = copy.copy(pipe)
    for name, part in wide.items():
        setattr(own, name, part)
    return own


def _require_same_layers(rounded: Mapping[str, RoundedLayer], layers: Sequence[LayerSpec]) -> None:
    given = {name: f"{layer.weight.grid.bits} bits" for name, layer in rounded.items()}
    wanted = {spec.name: f"{spec.weight_bits} bits" for spec in layers}
    for name in (*wanted, *given):
        if given.get(name) != wanted.get(name):
            raise ValueError(
                f"rounded weights have {given.get(name, 'no bits')} for layer {name}, the recipe has "
                f"{wanted.get(name, 'none')}; they serve recipes of the same keys for weights and layers only"
            )
