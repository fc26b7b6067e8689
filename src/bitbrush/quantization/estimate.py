"""What a quantization will do, and a coarse bound on memory and disk, before anything long starts.

The denoiser calls are exact. Memory and disk are upper bounds from the tensors of one real denoiser call and from the
sizes of the layers; they refuse early what cannot fit, and predict nothing closer.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bitbrush.methods import METHODS
from bitbrush.methods.stages.allocate_bits import ALLOCATE_BITS
from bitbrush.methods.stages.calibrate_progressively import CALIBRATE_PROGRESSIVELY
from bitbrush.methods.stages.learn_step_sizes import LEARN_STEP_SIZES
from bitbrush.methods.stages.round_weights import RECORD_TRAJECTORIES
from bitbrush.methods.state import QuantizationState
from bitbrush.network.held import held_weights, weight_shape
from bitbrush.network.layers import LayerSpec
from bitbrush.network.narrow import narrow_bytes
from bitbrush.numerics.histogram import BINS
from bitbrush.quantization.walk import PipelineWalk, sample_bytes, walk_pipeline
from bitbrush.rounding.blocks import reconstruction_blocks
from bitbrush.rounding.compensation import WAITING_BYTES, WHOLE_BYTES
from bitbrush.session.disk import available_disk, size_text
from bitbrush.session.machine import available_memory, available_on_card
from bitbrush.session.memory import resident_memory
from bitbrush.session.offload import ROOM

FLOAT = 4
HISTOGRAM_BYTES = 8 * BINS
ENTRY_BYTES = 110
"""Of a tensor's name, shape and place in a safetensors file; a layer has ten at most."""
PARAMETER_BYTES = 13
"""Of one layer's activation parameters at one timestep in the artifact: timestep, scale, zero point, bits."""
WEIGHT_COPIES = 8
"""Float copies of the largest layer's weights while its range is searched or its rounding learned."""
FRAGMENTATION = 384 << 20
"""Allowance for heap fragmentation: min(384 MiB, tensor bytes)."""


@dataclass(frozen=True)
class StageEstimate:
    """Denoiser calls of one stage: ``calls_per_batch`` for each of ``batches``."""

    name: str
    batches: int
    calls_per_batch: int


@dataclass(frozen=True)
class Estimate:
    """What a quantization will do and take in this process; sizes in bytes.

    Args:
        specs: The treatment of every layer of the denoiser as given.
        stages: The stages that will run, in order.
        resident: Memory that the process holds already.
        memory: Bound on the memory that the stages take beside it.
        offloaded: Bound on the disk that offloaded samples take meanwhile, beyond what stays in memory.
        artifact: Size of the artifact.
        work: Disk that finished pieces take beside the artifact until it is whole.
    """

    specs: tuple[LayerSpec, ...]
    stages: tuple[StageEstimate, ...]
    resident: int
    memory: int
    offloaded: int
    artifact: int
    work: int


def estimate(state: QuantizationState) -> Estimate:
    """Follows the pipeline's own call for one prompt and counts; costs one denoiser call.

    Raises:
        ValueError: The recipe asks for what a stage cannot do.
    """
    stages = METHODS[state.recipe.method].planned(state)
    walk = walk_pipeline(state)
    calls = {stage.name: stage.calls(state, len(walk.timesteps)) for stage in stages}
    learned = sum(sample_bytes(state, walk)) if RECORD_TRAJECTORIES in stages else 0
    waiting = _offloaded_bytes(state, walk) if learned else 0
    progressive = CALIBRATE_PROGRESSIVELY in stages
    layers = state.calibration.layers
    histograms = walk.distinct_timesteps * len(layers) * HISTOGRAM_BYTES
    integers = sum(math.prod(spec.shape) for spec in layers)
    working = _call_bytes(state, walk) + min(learned + waiting, ROOM) + (_rounding_bytes(state) if learned else 0)
    if ALLOCATE_BITS in stages or LEARN_STEP_SIZES in stages:
        working += _graph_bytes(state, walk) + FLOAT * max(integers, held_weights(state.denoiser))
    return Estimate(
        specs=state.specs,
        stages=tuple(StageEstimate(name, len(one.batches), one.per_batch) for name, one in calls.items()),
        resident=resident_memory(),
        memory=integers + histograms + working + min(working, FRAGMENTATION),
        offloaded=max(0, learned + waiting - ROOM),
        artifact=_artifact_bytes(state, walk),
        work=(integers if learned else 0) + (histograms if progressive else 0),
    )


def _call_bytes(state: QuantizationState, walk: PipelineWalk) -> int:
    """Bounds a denoiser call of the largest batch, and what the suspended pipeline calls of all prompts hold."""
    prompts = [len(batch.prompts) for batch in state.own_batches] or [0]
    inputs = max((use.inputs for use in walk.footprint.modules.values()), default=0)
    widest = max((math.prod(spec.shape) for spec in state.calibration.layers), default=0)
    suspended = 2 * max(walk.argument_bytes) * sum(prompts)
    return (walk.footprint.most + 4 * inputs) * max(prompts) + suspended + WEIGHT_COPIES * FLOAT * widest


def _graph_bytes(state: QuantizationState, walk: PipelineWalk) -> int:
    """Bounds what a denoiser call of the first batch keeps for its backward pass."""
    kept = sum(use.inputs + use.outputs for use in walk.footprint.modules.values())
    return 2 * kept * len(state.batches[0].prompts)


def _rounding_bytes(state: QuantizationState) -> int:
    """Bounds what error compensation of the widest layer takes: Gram matrices and columns of inputs."""
    widths = [math.prod(weight_shape(state.denoiser.get_submodule(spec.name))[1:]) for spec in state.calibration.layers]
    matrix = FLOAT * max(widths, default=0) ** 2
    return matrix + min(matrix, WAITING_BYTES) + WHOLE_BYTES


def _offloaded_bytes(state: QuantizationState, walk: PipelineWalk) -> int:
    """Bounds what all samples' calls, suspended at a block in both networks, hold; and a Gram matrix that waits."""
    called = walk.footprint.modules
    names = [spec.name for spec in state.calibration.layers if spec.name in called]
    blocks = [called[name] for name in reconstruction_blocks(state.denoiser, state.family, names)]
    held = max((2 * use.live + use.inputs + 2 * use.outputs for use in blocks), default=0)
    matrix = FLOAT * max(math.prod(weight_shape(state.denoiser.get_submodule(name))[1:]) for name in names) ** 2
    return len(sample_bytes(state, walk)) * held + (matrix if matrix >= WAITING_BYTES else 0)


def _artifact_bytes(state: QuantizationState, walk: PipelineWalk) -> int:
    """Sizes packed integers, scales and activation parameters; all other tensors as they are stored."""
    others = [part for name, part in state.pipe.components.items() if name != state.family.component]
    size = _state_bytes(state.denoiser) + sum(narrow_bytes(part) for part in others if isinstance(part, nn.Module))
    for spec in state.calibration.layers:
        weights = math.prod(spec.shape)
        size += -(-weights * spec.weight_bits // 8) - FLOAT * weights
        size += (FLOAT + 1) * spec.shape[0] + PARAMETER_BYTES * walk.distinct_timesteps + 10 * ENTRY_BYTES
    return size


def _state_bytes(network: nn.Module) -> int:
    return sum(int(tensor.nbytes) for tensor in network.state_dict().values()) + FLOAT * held_weights(network)


def require_room(estimate: Estimate, output: Path, *, kept: int = 0, processes: int = 1) -> None:
    """Raises ValueError if the machine cannot hold the quantization.

    Args:
        estimate: Of each process.
        output: The artifact's folder.
        kept: Bytes of unfinished work that are on the disk already.
        processes: Processes of this machine, each with such an estimate and all of them loaded.
    """
    memory = available_memory()
    if processes * estimate.memory > memory:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise ValueError(
            f"quantizing takes up to {size_text(estimate.memory)} of memory{each} beside what is loaded, "
            f"{size_text(memory)} are available; lower batch_size or num_prompts, choose --method pcr (which measures "
            "no sensitivities) or --rounding nearest, make smaller images, or free memory"
        )
    require_disk(estimate, output, kept=kept, processes=processes)


def require_disk(estimate: Estimate, output: Path, *, kept: int = 0, processes: int = 1) -> None:
    """Raises ValueError if the disk cannot; arguments as for :func:`require_room`."""
    work, disk = max(0, estimate.work - kept), available_disk(output)
    most = max(estimate.artifact, processes * estimate.offloaded)  # samples are gone before the artifact is written
    if most + work > disk:
        samples = "" if most == estimate.artifact else " for samples (fewer with a lower num_prompts)"
        raise ValueError(
            f"{output} takes about {size_text(most)} of disk{samples} and {size_text(work)} for unfinished work beside "
            f"it, {size_text(disk)} are free; make room there, or choose another output"
        )


def short_on_card(estimate: Estimate, card: torch.device) -> str | None:
    """Returns a warning if the GPU may have too little memory left; None if it has enough."""
    left = available_on_card(card)
    if estimate.memory <= left:
        return None
    return (
        f"quantizing takes up to {size_text(estimate.memory)} beside what is loaded, and {size_text(left)} are left on "
        f"{card}: if that is too little, lower batch_size or num_prompts, or compute on the CPU (--device cpu)"
    )
