"""What a quantization will do and take, told before anything long starts."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bitbrush.artifact.machine import available_memory, available_on_card
from bitbrush.artifact.narrow import narrow_bytes
from bitbrush.artifact.tensors import LAYER_KEYS
from bitbrush.artifact.walk import PipelineWalk, sample_bytes, walk_pipeline
from bitbrush.methods import METHODS
from bitbrush.methods.allocation import SENSITIVITY
from bitbrush.methods.method import Job, PlannedPhase
from bitbrush.methods.stages import RECORDING, ROUNDING
from bitbrush.network.held import held_weights, widest_held_weight
from bitbrush.network.layers import LayerSpec
from bitbrush.numerics.histogram import BINS
from bitbrush.rounding.blocks import reconstruction_blocks
from bitbrush.rounding.demand import FLOAT, rounding_bytes, spooled_bytes, waiting_bytes
from bitbrush.rounding.samples import sample_batches
from bitbrush.timeline.disk import available_disk, size_text
from bitbrush.timeline.memory import resident_memory
from bitbrush.timeline.spool import ROOM

HISTOGRAM_BYTES = 8 * BINS
GRID_BYTES = 13
"""Of one activation grid in the artifact: timestep, scale, zero point, bits."""
ENTRY_BYTES = 110
"""Of a tensor's name, shape and place in a safetensors file."""
INPUT_COPIES = 4
"""Of the largest layer input, while it is observed or quantized."""
SEARCH_COPIES = 6
"""Of the largest weight, while its range is searched."""
GRAPH_COPIES = 2
"""Of all layers' inputs and outputs: what a denoiser call keeps for its backward pass."""
HOLES = 384 << 20
"""At most, and at most as much as tensors take: what is freed leaves holes until the end of a step or layer.

Large buffers leave none; they go back to the system when they are freed.
"""
REMEDIES = {
    ROUNDING: "num_prompts, choose --rounding nearest",
    SENSITIVITY: "batch_size, choose --method pcr, which measures no sensitivities",
}
"""Of phases that need more memory than there is."""


@dataclass(frozen=True)
class PhaseEstimate:
    """``calls_per_batch`` of the denoiser, for each of ``batches``; ``bytes`` beyond what the process holds before."""

    name: str
    batches: int
    calls_per_batch: int
    bytes: int


@dataclass(frozen=True)
class Estimate:
    """``resident``: bytes that the process holds already; ``weight_bytes`` of the denoiser, were it in float32.

    ``samples``: denoiser calls of one prompt each that are kept for learned rounding; ``spool_bytes``: what they, the
    calls suspended there and a large Gram matrix take on the disk meanwhile, beyond what has room in memory.
    ``work_bytes``: of what an interrupted run goes on from; on the disk beside the artifact, until that is whole.
    """

    specs: tuple[LayerSpec, ...]
    phases: tuple[PhaseEstimate, ...]
    resident: int
    weight_bytes: int
    samples: int
    spool_bytes: int
    artifact_bytes: int
    work_bytes: int

    @property
    def largest(self) -> PhaseEstimate:
        """The phase that takes the most memory."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def peak_bytes(self) -> int:
        return self.resident + self.largest.bytes


def estimate_job(job: Job) -> tuple[Estimate, PipelineWalk]:
    """Counted by the method's own phases and the pipeline's own call; costs a denoiser call of one prompt.

    Where processes share the job it is the estimate of this one.

    Raises ValueError for what the method would refuse.
    """
    phases = METHODS[job.recipe.method].phases(job)
    walk = walk_pipeline(job)
    sizes = sample_bytes(job, walk)
    memory = _Memory(job, walk, samples=len(sizes))
    visits = len(walk.timesteps) * len(job.calibration.layers)
    progressive = any(phase.on_rounded_weights for phase in phases)
    estimate = Estimate(
        specs=job.specs,
        phases=tuple(
            PhaseEstimate(one.name, len(one.batches), one.calls(len(walk.timesteps)), memory.of(one)) for one in phases
        ),
        resident=resident_memory(),
        weight_bytes=memory.denoiser,
        samples=len(sizes),
        spool_bytes=max(0, sum(sizes) + memory.spooled + memory.waiting - ROOM),
        artifact_bytes=_artifact_bytes(job, walk),
        work_bytes=(memory.integers if sizes else 0) + (visits * HISTOGRAM_BYTES if progressive else 0),
    )
    return estimate, walk


def require_room(estimate: Estimate, output: Path, *, kept: int = 0, processes: int = 1) -> None:
    """Raises ValueError if the job cannot fit into the memory or onto the disk that the machine has left.

    ``kept``: bytes of its work that are on the disk already. ``processes``: of this machine that have such an estimate
    each, all of them loaded. Memory is not looked at where the system does not tell.
    """
    phase, memory = estimate.largest, available_memory()
    if memory is not None and processes * phase.bytes > memory:
        fewer = REMEDIES.get(phase.name, "batch_size")
        fewer += ", or start fewer processes" if processes > 1 else ""
        each = f" in each of {processes}" if processes > 1 else ""
        raise ValueError(
            f"{phase.name.replace('_', ' ')} takes about {size_text(phase.bytes)} of memory{each} beside "
            f"what is loaded, {size_text(memory)} are available; lower {fewer}, make smaller pictures, or free memory"
        )
    require_disk(estimate, output, kept=kept, processes=processes)


def require_disk(estimate: Estimate, output: Path, *, kept: int = 0, processes: int = 1) -> None:
    """The latter half of :func:`require_room`."""
    work, disk = max(0, estimate.work_bytes - kept), available_disk(output)
    most = max(estimate.artifact_bytes, processes * estimate.spool_bytes)  # the samples go before the artifact comes
    if most + work > disk:
        samples = "" if most == estimate.artifact_bytes else " for samples (fewer with a lower num_prompts)"
        raise ValueError(
            f"{output} takes about {size_text(most)} of disk{samples} and {size_text(work)} for unfinished work beside "
            f"it, {size_text(disk)} are free; make room there, or choose another output"
        )


def short_on_card(estimate: Estimate, card: torch.device) -> str | None:
    """What is to be told if the card may have too little memory left: it was reckoned for the processor's."""
    phase, left = estimate.largest, available_on_card(card)
    if phase.bytes <= left:
        return None
    return (
        f"{phase.name.replace('_', ' ')} takes about {size_text(phase.bytes)} beside what is loaded, and "
        f"{size_text(left)} are left on {card}: if they do not do, lower {REMEDIES.get(phase.name, 'batch_size')}, "
        "or compute on the processor (--device cpu)"
    )


class _Memory:
    """Bytes that each phase holds at most beside what is there before the first."""

    def __init__(self, job: Job, walk: PipelineWalk, *, samples: int) -> None:
        self._job, self._walk, self._samples = job, walk, samples
        weights = [math.prod(spec.shape) for spec in job.calibration.layers]
        self.denoiser = _state_bytes(job.denoiser)
        self.integers = sum(weights)
        self._widened = FLOAT * widest_held_weight(job.denoiser)
        self._largest_weight = FLOAT * max(weights, default=0)

    def of(self, phase: PlannedPhase) -> int:
        most, widened = self._walk.footprint.most, self._widened
        prompts = max((len(batch.prompts) for batch in phase.batches), default=0)
        if phase.name == RECORDING:
            return self._suspended(phase) + _with_holes(most * prompts) + widened
        if phase.name == ROUNDING:
            return self._rounding()
        if phase.name == SENSITIVITY:
            return self._probing(phase, prompts)
        call = (most + self._input_copies()) * prompts + widened
        if phase.learning_prompts:
            call += self._graph(phase.learning_prompts) + FLOAT * self.integers
        return self.integers + self._histograms() + self._suspended(phase) + _with_holes(call)

    def _rounding(self) -> int:
        search = SEARCH_COPIES * self._largest_weight
        if not self._samples:
            return self.integers + search
        prompts = max(len(batch.prompts) for batch in sample_batches(self._job.batches))
        recorded = min(sum(sample_bytes(self._job, self._walk)), ROOM)
        learning = recorded + rounding_bytes(
            self._job.denoiser,
            self._blocks,
            self._walk.footprint,
            prompts,
            self._samples,
            room=ROOM - recorded,
        )
        return self.integers + _with_holes(max(learning, search)) + self._widened

    @property
    def spooled(self) -> int:
        return spooled_bytes(self._blocks, self._walk.footprint, self._samples) if self._samples else 0

    @property
    def waiting(self) -> int:
        return waiting_bytes(self._job.denoiser, self._blocks) if self._samples else 0

    @property
    def _blocks(self) -> dict[str, tuple[str, ...]]:
        called = self._walk.footprint.modules
        names = [spec.name for spec in self._job.calibration.layers if spec.name in called]
        return reconstruction_blocks(self._job.denoiser, self._job.family, names)

    def _probing(self, phase: PlannedPhase, prompts: int) -> int:
        """The graph of a denoiser call, the gradient of a weight and its errors, all kept calls and their outputs."""
        graph = self._graph(prompts)
        kept = 2 * sum(self._walk.argument_bytes) * prompts
        search = SEARCH_COPIES * self._largest_weight
        widened = FLOAT * held_weights(self._job.denoiser)
        return widened + _with_holes(graph) + kept + search + self._histograms() + self._suspended(phase)

    def _graph(self, prompts: int) -> int:
        """What one denoiser call keeps for its backward pass."""
        return GRAPH_COPIES * sum(use.inputs + use.outputs for use in self._walk.footprint.modules.values()) * prompts

    def _histograms(self) -> int:
        return self._walk.distinct_timesteps * len(self._job.calibration.layers) * HISTOGRAM_BYTES

    def _suspended(self, phase: PlannedPhase) -> int:
        """What the waiting pipeline calls of all prompts hold: the denoiser's arguments, and their own like these."""
        return 2 * max(self._walk.argument_bytes) * sum(len(batch.prompts) for batch in phase.batches)

    def _input_copies(self) -> int:
        return INPUT_COPIES * max((use.inputs for use in self._walk.footprint.modules.values()), default=0)


def _with_holes(size: int) -> int:
    return size + min(size, HOLES)


def _artifact_bytes(job: Job, walk: PipelineWalk) -> int:
    """Packed integers, scales and activation grids of the quantized layers; all else of the denoiser as float32."""
    parts = [part for name, part in job.pipe.components.items() if name != job.family.component]
    size = _state_bytes(job.denoiser) + sum(narrow_bytes(part) for part in parts if isinstance(part, nn.Module))
    for spec in job.calibration.layers:
        weights = math.prod(spec.shape)
        size += -(-weights * spec.weight_bits // 8) - FLOAT * weights
        size += (FLOAT + 1) * spec.shape[0] + GRID_BYTES * walk.distinct_timesteps
        size += ENTRY_BYTES * len(LAYER_KEYS)
    return size


def _state_bytes(network: nn.Module) -> int:
    """In float32, wherever its weights are held."""
    return sum(int(tensor.nbytes) for tensor in network.state_dict().values()) + FLOAT * held_weights(network)
