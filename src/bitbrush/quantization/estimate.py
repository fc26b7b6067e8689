"""Estimate of denoiser calls, with coarse upper bounds on memory and disk, made before long work starts.

The number of denoiser calls is exact. The bounds come from the tensors of one real denoiser call and the layer sizes.
They reject runs that cannot fit and are no closer prediction.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bitbrush.methods import METHODS
from bitbrush.methods.recipe import Networks
from bitbrush.methods.stages.allocate_bits import ALLOCATE_BITS
from bitbrush.methods.stages.calibrate_progressively import CALIBRATE_PROGRESSIVELY
from bitbrush.methods.stages.learn_step_sizes import LEARN_STEP_SIZES
from bitbrush.methods.stages.round_weights import RECORD_TRAJECTORIES
from bitbrush.methods.state import QuantizationState
from bitbrush.network.layers import LayerSpec
from bitbrush.network.lazy_weights import count_lazy_weights, weight_shape
from bitbrush.network.narrow import float32_bytes, narrow_bytes, saving_bytes
from bitbrush.network.other_networks import TABLE_BITS, table_shapes
from bitbrush.numerics.histogram import BINS
from bitbrush.quantization.networks import LATENT_PROMPTS, network_specs
from bitbrush.quantization.text_encoders import HESSIAN_BYTES
from bitbrush.quantization.trace import PipelineTrace, sample_bytes, trace_pipeline
from bitbrush.rounding.blocks import reconstruction_blocks
from bitbrush.rounding.compensation import OFFLOAD_BYTES, WHOLE_BYTES
from bitbrush.session.disk import available_disk, size_text
from bitbrush.session.machine import available_memory, available_on_gpu
from bitbrush.session.memory import resident_memory
from bitbrush.session.offload import BUDGET_BYTES
from bitbrush.timeline.trajectory import join, split

FLOAT = 4
HISTOGRAM_BYTES = 8 * BINS
SEARCH_COPIES = 20
"""Memory of the range search in histograms of one layer; it covers several bit widths at once."""
ENTRY_BYTES = 110
"""Bytes of a tensor's name, shape and offsets in a safetensors header; a layer has at most ten tensors."""
PARAMETER_BYTES = 13
"""Bytes of one layer's activation qparams at one timestep in the artifact: timestep, scale, zero point, bits."""
WEIGHT_COPIES = 8
"""Float copies of the largest layer's weights during range search or learned rounding."""
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
    """Work and resources of a quantization in this process; sizes in bytes.

    Args:
        specs: Treatment of every layer of the input denoiser.
        networks: Treatment of every layer of the networks beside it that are quantized, by name.
        stages: Stages that will run, in order.
        resident: Resident memory of the process before the stages run.
        memory: Upper bound on the additional memory of the stages.
        offloaded: Upper bound on the temporary disk space of offloaded samples, beyond what stays in memory.
        artifact: Size of the artifact.
        saving: Disk space that saving the artifact takes at most.
        work: Disk space of intermediate results, additional to the artifact until it is complete.
    """

    specs: tuple[LayerSpec, ...]
    networks: Mapping[str, tuple[LayerSpec, ...]]
    stages: tuple[StageEstimate, ...]
    resident: int
    memory: int
    offloaded: int
    artifact: int
    saving: int
    work: int


def estimate(state: QuantizationState) -> Estimate:
    """Estimates denoiser calls, memory and disk from a dry run of the pipeline for one prompt.

    The dry run costs one denoiser call for each combination of input shapes, mostly one in all.

    Args:
        state: State before the first stage, from :func:`bitbrush.quantization.quantize.prepare`.

    Returns:
        Layer treatments, planned stages and resource bounds.

    Raises:
        ValueError: The recipe asks for something that a stage cannot do.
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
    networks = network_specs(state)
    beside = sum(_packed_bytes(getattr(state.pipe, name), specs) for name, specs in networks.items())
    quantized, others = _quantized_bytes(state, trace) + beside, _other_networks(state, networks)
    observed = HESSIAN_BYTES + WEIGHT_COPIES * FLOAT * _widest(networks) if networks else 0
    return Estimate(
        specs=state.specs,
        networks=networks,
        stages=(
            *(StageEstimate(name, len(stage.batches), stage.per_batch) for name, stage in calls.items()),
            *_network_stages(state, len(trace.timesteps)),
        ),
        resident=resident_memory(),
        memory=max(integers + histograms + searched + working + min(working, FRAGMENTATION), beside + observed),
        offloaded=max(0, learned + waiting - BUDGET_BYTES),
        artifact=quantized + sum(narrow for _, narrow in others),
        saving=saving_bytes(others, quantized),
        work=(integers if learned else 0) + (histograms if progressive else 0),
    )


def _call_bytes(state: QuantizationState, trace: PipelineTrace) -> int:
    """Bounds the memory of a denoiser call of the largest batch and of the suspended pipeline calls of all prompts."""
    prompts = [len(batch.prompts) for batch in state.own_batches] or [0]
    inputs = max((use.inputs for use in trace.memory.modules.values()), default=0)
    widest = max((math.prod(spec.shape) for spec in state.calibration.layers), default=0)
    suspended = 2 * max(trace.argument_bytes) * sum(prompts)
    return (trace.memory.most + 4 * inputs) * max(prompts) + suspended + WEIGHT_COPIES * FLOAT * widest


def _graph_bytes(state: QuantizationState, trace: PipelineTrace) -> int:
    """Bounds the activations that a denoiser call of the first batch stores for its backward pass."""
    activations = sum(use.inputs + use.outputs for use in trace.memory.modules.values())
    return 2 * activations * len(state.batches[0].prompts)


def _rounding_bytes(state: QuantizationState) -> int:
    """Bounds the memory of error compensation in the widest layer: Hessians (Gram matrices) and input columns."""
    widths = [math.prod(weight_shape(state.denoiser.get_submodule(spec.name))[1:]) for spec in state.calibration.layers]
    matrix = FLOAT * max(widths, default=0) ** 2
    return matrix + min(matrix, OFFLOAD_BYTES) + WHOLE_BYTES


def _offloaded_bytes(state: QuantizationState, trace: PipelineTrace) -> int:
    """Bounds the suspended calls of all samples at a block in both networks, plus one offloaded Hessian."""
    called = trace.memory.modules
    names = [spec.name for spec in state.calibration.layers if spec.name in called]
    blocks = [called[name] for name in reconstruction_blocks(state.denoiser, state.family, names)]
    held = max((2 * use.live + use.inputs + 2 * use.outputs for use in blocks), default=0)
    matrix = FLOAT * max(math.prod(weight_shape(state.denoiser.get_submodule(name))[1:]) for name in names) ** 2
    return len(sample_bytes(state, trace)) * held + (matrix if matrix >= OFFLOAD_BYTES else 0)


def _network_stages(state: QuantizationState, calls: int) -> list[StageEstimate]:
    """Lists the stages after those of the method; ``calls`` are the denoiser calls of one generation."""
    latents = split(join(state.batches)[:LATENT_PROMPTS], state.recipe.batch_size)
    stages = {
        Networks.TEXT_ENCODERS: StageEstimate(Networks.TEXT_ENCODERS, len(state.batches), 0),
        Networks.VAE: StageEstimate(Networks.VAE, len(latents), calls),
    }
    return [stage for group, stage in stages.items() if group in state.recipe.networks]


def _widest(networks: Mapping[str, Sequence[LayerSpec]]) -> int:
    return max(math.prod(spec.shape) for specs in networks.values() for spec in specs)


def _packed_bytes(network: nn.Module, specs: Sequence[LayerSpec]) -> int:
    """Sums the packed integers, scales and embedding tables of a network beside the denoiser, and its other tensors."""
    size = _state_bytes(network)
    for spec in specs:
        weights = math.prod(spec.shape)
        size += -(-weights * spec.weight_bits // 8) - FLOAT * weights + (FLOAT + 1) * spec.shape[0] + 8 * ENTRY_BYTES
    for rows, width in table_shapes(network).values():
        size += rows * width * TABLE_BITS // 8 - FLOAT * rows * width + (FLOAT + 1) * rows + 3 * ENTRY_BYTES
    return size


def _other_networks(state: QuantizationState, quantized: Collection[str]) -> list[tuple[int, int]]:
    """Returns the bytes of each network that stays in floating point, in float32 and in its lossless dtype."""
    taken = (state.family.component, *quantized)
    others = [part for name, part in state.pipe.components.items() if name not in taken]
    return [(float32_bytes(part), narrow_bytes(part)) for part in others if isinstance(part, nn.Module)]


def _quantized_bytes(state: QuantizationState, trace: PipelineTrace) -> int:
    """Sums the denoiser's packed integers, scales and activation parameters, and its other tensors."""
    size = _state_bytes(state.denoiser)
    for spec in state.calibration.layers:
        weights = math.prod(spec.shape)
        size += -(-weights * spec.weight_bits // 8) - FLOAT * weights
        size += (FLOAT + 1) * spec.shape[0] + PARAMETER_BYTES * trace.distinct_timesteps + 10 * ENTRY_BYTES
    return size


def _state_bytes(network: nn.Module) -> int:
    return sum(int(tensor.nbytes) for tensor in network.state_dict().values()) + FLOAT * count_lazy_weights(network)


def require_memory(estimate: Estimate, output: Path, *, journal_bytes: int = 0, processes: int = 1) -> None:
    """Rejects a quantization that exceeds the available memory or disk space.

    Args:
        estimate: Estimate for each process.
        output: Folder of the artifact.
        journal_bytes: Bytes of intermediate results already on the disk.
        processes: Processes on this machine, each with this estimate and each with its model loaded.

    Raises:
        ValueError: The machine lacks memory or disk space; the message names the amounts and the remedies.
    """
    memory = available_memory()
    if processes * estimate.memory > memory:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise ValueError(
            f"quantizing takes up to {size_text(estimate.memory)} of memory{each} beside what is loaded, "
            f"{size_text(memory)} are available; lower batch_size or num_prompts, choose --method pcr (which measures "
            "no sensitivities) or --rounding nearest, make smaller images, or free memory"
        )
    require_disk(estimate, output, journal_bytes=journal_bytes, processes=processes)


def require_disk(estimate: Estimate, output: Path, *, journal_bytes: int = 0, processes: int = 1) -> None:
    """Rejects a quantization that exceeds the free disk space.

    Args:
        estimate: Estimate for each process.
        output: Folder of the artifact.
        journal_bytes: Bytes of intermediate results already on the disk.
        processes: Processes on this machine, each with this estimate.

    Raises:
        ValueError: The disk lacks space; the message names the amounts and the remedies.
    """
    work, disk = max(0, estimate.work - journal_bytes), available_disk(output)
    most = max(estimate.saving, processes * estimate.offloaded)  # samples are deleted before the artifact is written
    if most + work > disk:
        samples = "" if most == estimate.saving else " for samples (fewer with a lower num_prompts)"
        raise ValueError(
            f"{output} takes about {size_text(most)} of disk{samples} and {size_text(work)} for unfinished work beside "
            f"it, {size_text(disk)} are free; make room there, or choose another output"
        )


def short_on_gpu(estimate: Estimate, gpu: torch.device) -> str | None:
    """Returns a warning if the estimate exceeds the available GPU memory, None otherwise.

    Args:
        estimate: Estimate for this process.
        gpu: Device that computes.

    Returns:
        Warning text with both sizes, or None.
    """
    free = available_on_gpu(gpu)
    if estimate.memory <= free:
        return None
    return (
        f"quantizing takes up to {size_text(estimate.memory)} beside what is loaded, and {size_text(free)} are left on "
        f"{gpu}: if that is too little, lower batch_size or num_prompts, or compute on the CPU (--device cpu)"
    )
