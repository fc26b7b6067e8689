"""Quantization of a full-precision pipeline from prompts and a recipe."""

import copy
import inspect
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.auto_pipeline import (
    AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    AUTO_INPAINT_PIPELINES_MAPPING,
    AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
)
from torch import nn

from bitbrush.calibration.relaxing import Relaxation, average_bits
from bitbrush.methods import METHODS
from bitbrush.methods.method import Outcome, outcome, run_stages
from bitbrush.methods.recipe import Networks, Recipe, WeightAllocation
from bitbrush.methods.stage import Stage
from bitbrush.methods.state import AllocatedBits, QuantizationState
from bitbrush.network.families import family_of
from bitbrush.network.family import Family
from bitbrush.network.generic import generic_family
from bitbrush.network.layers import LayerSpec
from bitbrush.network.lazy_weights import (
    HALF,
    in_float32,
    materialize_,
    shallow_copy,
)
from bitbrush.network.other_networks import QuantizedNetwork, integer_part
from bitbrush.quantization.networks import network_specs, quantize_decoders, quantize_text_encoders
from bitbrush.quantization.work import require_same_work, work_facts
from bitbrush.rounding.nearest import RoundedLayer
from bitbrush.runtime.choose import RuntimeName, choose_runtime
from bitbrush.runtime.lowered import lower, lower_network, lowered_of
from bitbrush.session.allocator import share_heap
from bitbrush.session.costs import PhaseCost
from bitbrush.session.journal import Journal, open_journal
from bitbrush.session.offload import BUDGET_BYTES, Offload, OffloadBudget
from bitbrush.session.outputs import claimed
from bitbrush.session.progress import (
    PlannedWork,
    Progress,
    planned,
    silent,
)
from bitbrush.session.ranks import ALONE, Ranks, ranks
from bitbrush.session.session import Session
from bitbrush.sources.identity import model_digest
from bitbrush.sources.prompt_texts import prompt_texts
from bitbrush.sources.savable import require_savable
from bitbrush.sources.schedulers import with_scheduler
from bitbrush.timeline.defaults import plain_defaults
from bitbrush.timeline.pipeline_call import require_callable
from bitbrush.timeline.trajectory import PromptBatch, planned_timesteps, prompt_batches


@dataclass(frozen=True)
class Quantization:
    """Quantized pipeline in memory.

    Args:
        source: Full-precision pipeline with the recipe's scheduler, including any split, branch or smoothing of its
            denoiser.
        family: Facts about the denoiser's architecture.
        recipe: Keys that determined the result.
        outcome: Quantized layers, and the treatment of every layer.
        costs: Time, memory and denoiser calls of each stage in this process.
        recalibrated: ``manifest`` and ``digest`` of the artifact that supplied the weights; ``source`` then has those
            weights. None if the weights were rounded here.
        processes: Number of processes that shared the work.
        original: Pipeline before its denoiser was changed; None if ``source`` has the same denoiser.
        networks: Quantized networks beside the denoiser, by name.
    """

    source: DiffusionPipeline
    family: Family
    recipe: Recipe
    outcome: Outcome
    costs: dict[str, PhaseCost]
    recalibrated: Mapping[str, Any] | None = None
    processes: int = 1
    original: DiffusionPipeline | None = None
    networks: Mapping[str, QuantizedNetwork] = field(default_factory=dict)

    @property
    def average_activation_bits(self) -> float:
        """Average activation bits over all denoiser calls of the plan.

        High-precision layers always have 16 bits and are not counted. Layers with different bits are weighted by their
        multiplications.
        """
        if self.outcome.average_activation_bits is not None:
            return self.outcome.average_activation_bits
        relax = self.recipe.relax if isinstance(self.recipe.relax, Relaxation) else None
        return average_bits(self.recipe.activations, relax, self.outcome.planned)

    @property
    def rounded(self) -> dict[str, RoundedLayer]:
        """Rounded weights by layer name, for another quantization that differs only in activations."""
        return {layer.name: RoundedLayer(layer.weight, layer.bias, layer.first) for layer in self.outcome.layers}

    def pipeline(self) -> DiffusionPipeline:
        """Returns a pipeline with quantized networks that shares all other components with the source.

        Networks use the reference runtime. The denoiser's weights are in float32, for speed, at the memory cost of
        float32.
        """
        choice = choose_runtime(RuntimeName.REFERENCE)
        denoiser = shallow_copy(getattr(self.source, self.family.component))
        lower(denoiser, choice, self.outcome.layers)
        materialize_(denoiser)  # excluded layers may still be lazy weights
        pipe = copy.copy(self.source)
        setattr(pipe, self.family.component, denoiser)
        for name, quantized in self.networks.items():
            network = shallow_copy(getattr(self.source, name))
            lower_network(network, choice, quantized.layers, quantized.embeddings)
            setattr(pipe, name, materialize_(network))
        pipe.scheduler = copy.deepcopy(self.source.scheduler)
        return pipe


def quantize(
    pipe: DiffusionPipeline,
    recipe: Recipe,
    prompts: Iterable[str],
    *,
    inputs: Mapping[str, Sequence[Any]] | None = None,
    generic: bool = False,
    rounded: Mapping[str, RoundedLayer] | None = None,
    work: Path | None = None,
    progress: Progress = silent,
) -> Quantization:
    """Quantizes the denoiser of ``pipe`` by the recipe's method and leaves ``pipe`` unchanged.

    The denoiser's device computes, e.g. the GPU after ``pipe.to("cuda")``. The resulting integers are on the CPU, where
    the noise is drawn as well. A GPU's result therefore differs only by summation order. Networks in float16 or
    bfloat16 keep their type and are widened layer by layer for each call. The result equals that of the same weights in
    float32, bit for bit.

    Several processes (torchrun, or torch.distributed initialized with gloo) share the work by prompts. Each calls this
    function with the same arguments and receives the same result; one of them saves it. If one fails, the others raise
    RankError.

    Args:
        pipe: Full-precision diffusers pipeline.
        recipe: Keys that determine the result.
        prompts: Calibration prompts; the first ``recipe.num_prompts`` are used.
        inputs: Further pipeline arguments, one value per prompt under the pipeline's argument name, e.g.
            ``{"image": [...], "mask_image": [...]}``.
        generic: Whether to quantize a denoiser of no known family, by the structure that diffusers declares.
        rounded: Rounded weights of an earlier quantization of the same pipeline with the same weight keys; they are
            not rounded again.
        work: Folder for intermediate results. The same call resumes from it, bit for bit. Remove it after saving the
            result. Samples of learned rounding are offloaded there; None offloads to the system's temporary folder.
        progress: Callback that receives progress reports.

    Returns:
        The quantized pipeline with its recipe, layers and costs.

    Raises:
        ValueError: An unknown method, denoiser or scheduler; a denoiser of another type or already quantized; too few
            prompts, or fewer than processes; ``rounded`` weights of other layers or bits; ``work`` of another
            quantization; missing or unknown pipeline inputs; NaN in checkpoint or activations.
        OutputBusyError: Another process works in ``work``.
    """
    with ranks() as processes, _claimed(work, processes), processes.together(), plain_defaults():
        state = prepare(
            pipe, recipe, prompts, inputs=inputs, generic=generic, rounded=rounded, progress=progress, ranks=processes
        )
        return run(state, work)


def _claimed(work: Path | None, ranks: Ranks) -> AbstractContextManager[None]:
    return nullcontext() if work is None else claimed(work, ranks, work=work)


def run(state: QuantizationState, work: Path | None = None) -> Quantization:
    """Runs the stages of the state's recipe.

    Args:
        state: State before the first stage.
        work: Folder for intermediate results, as in :func:`quantize`.

    Returns:
        The quantized pipeline.
    """
    require_same_work(state)
    session = state.session
    if work is not None:
        session = replace(session, journal=_opened(work, state))
    session = replace(session, offload=Offload(work or Path(tempfile.gettempdir()), OffloadBudget(BUDGET_BYTES)))
    session = replace(session, progress=planned(session.progress, lambda: planned_work(state)))
    return finish(METHODS[state.recipe.method].stages, replace(state, session=session))


def planned_work(state: QuantizationState) -> list[PlannedWork]:
    """Lists the work items of all planned stages, for progress reports."""
    calls = len(planned_timesteps(state.pipe, state.family.component, state.recipe.plan, state.batches[0]))
    stages = METHODS[state.recipe.method].planned(state)
    return [work for stage in stages for work in stage.planned_work(state, calls)]


def _opened(work: Path, state: QuantizationState) -> Journal:
    """Opens the journal; only the first process has access to its folder."""
    ranks = state.session.ranks
    if not ranks.leads:
        return Journal(None, ranks)
    return open_journal(work, {"model": model_digest(state.original), **work_facts(state)}, ranks)


def finish(stages: tuple[Stage, ...], state: QuantizationState) -> Quantization:
    """Runs the stages and returns the quantized pipeline."""
    begin = max((place for place, stage in enumerate(stages, 1) if stage.changes_network), default=0)
    state = run_stages(stages[:begin], state)
    if state.rounded is not None:
        _require_same_layers(state.rounded, state.calibration.layers)
    state = run_stages(stages[begin:], state)
    costs, world = state.session.costs.phases, state.session.ranks.world
    original = None if state.pipe is state.original else state.original
    done = Quantization(
        state.pipe, state.family, state.recipe, outcome(state), costs, processes=world, original=original
    )
    done = replace(done, networks=quantize_text_encoders(state))
    if Networks.VAE not in state.recipe.networks:
        return done
    return replace(done, networks={**done.networks, **quantize_decoders(state, done.pipeline())})


def prepare(
    pipe: DiffusionPipeline,
    recipe: Recipe,
    prompts: Iterable[str],
    *,
    inputs: Mapping[str, Sequence[Any]] | None = None,
    generic: bool = False,
    rounded: Mapping[str, RoundedLayer] | None = None,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
) -> QuantizationState:
    """Validates the arguments of :func:`quantize` and returns the state before the first stage; computes nothing.

    Args:
        pipe: Full-precision diffusers pipeline.
        recipe: Keys that determine the result.
        prompts: Calibration prompts.
        inputs: Further pipeline arguments, one value per prompt.
        generic: Whether to quantize a denoiser of no known family, by the structure that diffusers declares.
        rounded: Rounded weights of an earlier quantization.
        progress: Callback that receives progress reports.
        ranks: Processes that share the work; only the first reports progress.

    Returns:
        State before the first stage.

    Raises:
        ValueError: An argument is invalid, as in :func:`quantize`.
    """
    share_heap()  # must precede the threads that suspend pipeline calls
    METHODS.named(recipe.method)
    batches = calibration_batches(recipe, prompts, inputs)
    if recipe.num_prompts < ranks.world:
        raise ValueError(
            f"num_prompts is {recipe.num_prompts} for {ranks.world} processes, of which each needs one; start fewer "
            "(torchrun --nproc-per-node), or use more prompts"
        )
    _require_full_precision(pipe)
    require_inputs(pipe, inputs or {})
    family = generic_family(pipe) if generic else family_of(pipe)
    _require_float(getattr(pipe, family.component), family.component)
    require_savable(pipe)
    source = _in_float32(with_scheduler(pipe, recipe.scheduler))
    require_callable(type(source), source.scheduler, recipe.plan, inputs or ())
    session = Session(ranks=ranks, progress=progress if ranks.leads else silent)
    allocated = None
    if rounded is not None and recipe.weight_allocation is WeightAllocation.MEASURED:
        allocated = AllocatedBits({name: layer.weight.qparams.bits for name, layer in rounded.items()})
    state = QuantizationState(
        source, family, recipe, batches, session, original=source, rounded=rounded, allocated=allocated
    )
    METHODS[recipe.method].planned(state)  # rejects keys that the method's stages do not support
    _ = state.specs  # rejects patterns that match no layer
    network_specs(state)  # rejects networks that cannot be quantized
    return state


def calibration_batches(
    recipe: Recipe, prompts: Iterable[str], inputs: Mapping[str, Sequence[Any]] | None = None
) -> tuple[PromptBatch, ...]:
    """Selects the recipe's calibration prompts and groups them into batches.

    Args:
        recipe: Recipe with ``num_prompts``, ``seed`` and ``batch_size``.
        prompts: Calibration prompts; the first ``num_prompts`` are used.
        inputs: Further pipeline arguments, one value per prompt.

    Returns:
        Batches of prompts with their seeds and inputs.

    Raises:
        ValueError: Fewer than ``num_prompts`` prompts are available, or they are no texts.
    """
    texts = prompt_texts(prompts, recipe.num_prompts)
    if len(texts) < recipe.num_prompts:
        raise ValueError(
            f"num_prompts is {recipe.num_prompts}, but only {len(texts)} calibration prompts are given; "
            "lower it or give more"
        )
    return tuple(prompt_batches(texts, recipe.seed, recipe.batch_size, inputs=inputs))


def require_inputs(pipe: DiffusionPipeline, inputs: Mapping[str, Any]) -> None:
    """Checks that an image-to-image or inpainting pipeline has its input images.

    Raises:
        ValueError: An image input is missing; the message names it.
    """
    image_pipelines = {*AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.values(), *AUTO_INPAINT_PIPELINES_MAPPING.values()}
    image_pipelines -= {*AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    parameters = inspect.signature(pipe.__call__).parameters
    missing = [name for name in ("image", "mask_image") if name in parameters and name not in inputs]
    if missing and type(pipe) in image_pipelines:
        raise ValueError(
            f"{type(pipe).__name__} makes images from images; give {' and '.join(missing)}: "
            'inputs={"image": [...]}, or the folders --images (and --masks) on the command line'
        )


def _require_full_precision(pipe: DiffusionPipeline) -> None:
    for name, part in pipe.components.items():
        lowered = lowered_of(integer_part(part)[1]) if isinstance(part, nn.Module) else None
        if lowered is not None:
            raise ValueError(
                f"the pipeline's {name} is quantized already (it runs on {lowered.name}); quantize the full-precision "
                "pipeline: bitbrush.load_full_precision(MODEL). bitbrush.recalibrate(DIRECTORY, ...) finds other "
                "activation ranges for an artifact's weights"
            )


def _require_float(denoiser: nn.Module, component: str) -> None:
    others = {parameter.dtype for parameter in denoiser.parameters()} - {torch.float32, *HALF}
    if others:
        raise ValueError(
            f"the pipeline's {component} holds {', '.join(sorted(map(str, others)))}; ranges and rounding are found in "
            "float32, to which only half precision is widened: load it with bitbrush.load_full_precision"
        )


def _in_float32(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Returns the pipeline, or a shallow copy whose networks compute in float32; the input stays unchanged."""
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    wide = {name: in_float32(part) for name, part in networks.items()}
    if all(wide[name] is part for name, part in networks.items()):
        return pipe
    pipe_copy = copy.copy(pipe)
    for name, part in wide.items():
        setattr(pipe_copy, name, part)
    return pipe_copy


def _require_same_layers(rounded: Mapping[str, RoundedLayer], layers: Sequence[LayerSpec]) -> None:
    rounded_bits = {name: f"{layer.weight.qparams.bits} bits" for name, layer in rounded.items()}
    recipe_bits = {spec.name: f"{spec.weight_bits} bits" for spec in layers}
    for name in (*recipe_bits, *rounded_bits):
        if rounded_bits.get(name) != recipe_bits.get(name):
            raise ValueError(
                f"rounded weights have {rounded_bits.get(name, 'no bits')} for layer {name}, the recipe has "
                f"{recipe_bits.get(name, 'none')}; use them with the same keys for weights and layers"
            )
