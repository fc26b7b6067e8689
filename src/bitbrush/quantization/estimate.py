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
from bitbrush.network.layers import LayerSpec
from bitbrush.network.lazy_weights import count_lazy_weights, weight_shape
from bitbrush.network.narrow import narrow_bytes
from bitbrush.numerics.histogram import BINS
from bitbrush.quantization.trace import PipelineTrace, sample_bytes, trace_pipeline
from bitbrush.rounding.blocks import reconstruction_blocks
from bitbrush.rounding.compensation import WAITING_BYTES, WHOLE_BYTES
from bitbrush.session.disk import available_disk, size_text
from bitbrush.session.machine import available_memory, available_on_gpu
from bitbrush.session.memory import resident_memory
from bitbrush.session.offload import BUDGET_BYTES

FLOAT = 4
HISTOGRAM_BYTES = 8 * BINS
SEARCH_COPIES = 20
"""Histograms of a layer whose memory the search of its ranges takes, for several numbers of bits at once."""
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
    trace = trace_pipeline(state)
    calls = {stage.name: stage.calls(state, len(trace.timesteps)) for stage in stages}
    learned = sum(sample_bytes(state, trace)) if RECORD_TRAJECTORIES in stages else 0
    waiting = _offloaded_bytes(state, trace) if learned else 0
    progressive = CALIBRATE_PROGRESSIVELY in stages
    layers = state.calibration.layers
    histograms, searched = (
        count * len(layers) * HISTOGRAM_BYTES for count in (trace.distinct_timesteps, SEARCH_COPIES)
    )
    integers = sum(math.prod(spec.shape) for spec in layers)
    rounding = min(learned + waiting, BUDGET_BYTES) + _rounding_bytes(state) if learned else 0
    has_gradients = ALLOCATE_BITS in stages or LEARN_STEP_SIZES in stages
    backward = (
        _graph_bytes(state, trace) + FLOAT * max(integers, count_lazy_weights(state.denoiser)) if has_gradients else 0
    )
    working = _call_bytes(state, trace) + max(rounding, backward)
    return Estimate(
        specs=state.specs,
        stages=tuple(StageEstimate(name, len(one.batches), one.per_batch) for name, one in calls.items()),
        resident=resident_memory(),
        memory=integers + histograms + searched + working + min(working, FRAGMENTATION),
        offloaded=max(0, learned + waiting - BUDGET_BYTES),
        artifact=_artifact_bytes(state, trace),
        work=(integers if learned else 0) + (histograms if progressive else 0),
    )


def _call_bytes(state: QuantizationState, trace: PipelineTrace) -> int:
    """Bounds a denoiser call of the largest batch, and what the suspended pipeline calls of all prompts hold."""
    prompts = [len(batch.prompts) for batch in state.own_batches] or [0]
    inputs = max((use.inputs for use in trace.memory.modules.values()), default=0)
    widest = max((math.prod(spec.shape) for spec in state.calibration.layers), default=0)
    suspended = 2 * max(trace.argument_bytes) * sum(prompts)
    return (trace.memory.most + 4 * inputs) * max(prompts) + suspended + WEIGHT_COPIES * FLOAT * widest


def _graph_bytes(state: QuantizationState, trace: PipelineTrace) -> int:
    """Bounds what a denoiser call of the first batch keeps for its backward pass."""
    kept = sum(use.inputs + use.outputs for use in trace.memory.modules.values())
    return 2 * kept * len(state.batches[0].prompts)


def _rounding_bytes(state: QuantizationState) -> int:
    """Bounds what error compensation of the widest layer takes: Gram matrices and columns of inputs."""
    widths = [math.prod(weight_shape(state.denoiser.get_submodule(spec.name))[1:]) for spec in state.calibration.layers]
    matrix = FLOAT * max(widths, default=0) ** 2
    return matrix + min(matrix, WAITING_BYTES) + WHOLE_BYTES


def _offloaded_bytes(state: QuantizationState, trace: PipelineTrace) -> int:
    """Bounds what all samples' calls, suspended at a block in both networks, hold; and a Gram matrix that waits."""
    called = trace.memory.modules
    names = [spec.name for spec in state.calibration.layers if spec.name in called]
    blocks = [called[name] for name in reconstruction_blocks(state.denoiser, state.family, names)]
    held = max((2 * use.live + use.inputs + 2 * use.outputs for use in blocks), default=0)
    matrix = FLOAT * max(math.prod(weight_shape(state.denoiser.get_submodule(name))[1:]) for name in names) ** 2
    return len(sample_bytes(state, trace)) * held + (matrix if matrix >= WAITING_BYTES else 0)


def _artifact_bytes(state: QuantizationState, trace: PipelineTrace) -> int:
    """Sizes packed integers, scales and activation parameters; all other tensors as they are stored."""
    others = [part for name, part in state.pipe.components.items() if name != state.family.component]
    size = _state_bytes(state.denoiser) + sum(narrow_bytes(part) for part in others if isinstance(part, nn.Module))
    for spec in state.calibration.layers:
        weights = math.prod(spec.shape)
        size += -(-weights * spec.weight_bits // 8) - FLOAT * weights
        size += (FLOAT + 1) * spec.shape[0] + PARAMETER_BYTES * trace.distinct_timesteps + 10 * ENTRY_BYTES
    return size


def _state_bytes(network: nn.Module) -> int:
    return sum(int(tensor.nbytes) for tensor in network.state_dict().values()) + FLOAT * count_lazy_weights(network)


def require_memory(estimate: Estimate, output: Path, *, kept: int = 0, processes: int = 1) -> None:
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
    """Raises ValueError if the disk cannot; arguments as for :func:`require_memory`."""
    work, disk = max(0, estimate.work - kept), available_disk(output)
    most = max(estimate.artifact, processes * estimate.offloaded)  # samples are gone before the artifact is written
    if most + work > disk:
        samples = "" if most == estimate.artifact else " for samples (fewer with a lower num_prompts)"
        raise ValueError(
            f"{output} takes about {size_text(most)} of disk{samples} and {size_text(work)} for unfinished work beside "
            f"it, {size_text(disk)} are free; make room there, or choose another output"
        )


def short_on_gpu(estimate: Estimate, gpu: torch.device) -> str | None:
    """Returns a warning if the GPU may have too little memory left; None if it has enough."""
    left = available_on_gpu(gpu)
    if estimate.memory <= left:
        return None
    return (
        f"quantizing takes up to {size_text(estimate.memory)} beside what is loaded, and {size_text(left)} are left on "
        f"{gpu}: if that is too little, lower batch_size or num_prompts, or compute on the CPU (--device cpu)"
    )
