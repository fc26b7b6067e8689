"""Dry run of a pipeline's own call for one prompt."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_iter

from bitbrush.methods.state import QuantizationState
from bitbrush.network.call_memory import CallMemory, measure_call_memory
from bitbrush.rounding.blocks import reconstruction_blocks
from bitbrush.rounding.samples import is_sample, sample_pieces
from bitbrush.session.live_memory import tensor_bytes
from bitbrush.timeline.trajectory import start


@dataclass(frozen=True)
class PipelineTrace:
    """Timesteps of all denoiser calls, the argument bytes of each, and the memory of the largest call."""

    timesteps: tuple[float, ...]
    argument_bytes: tuple[int, ...]
    memory: CallMemory

    @property
    def distinct_timesteps(self) -> int:
        """Number of different timesteps among the denoiser calls."""
        return len(set(self.timesteps))


def trace_pipeline(state: QuantizationState) -> PipelineTrace:
    """Traces every denoiser call of the pipeline and answers most calls with copies of earlier outputs.

    The denoiser runs once for each combination of input shapes, mostly once in all. The call count is therefore exact
    for pipelines that call the denoiser twice in a step, skip guidance in some steps, or end early.

    Args:
        state: State whose first prompt, pipeline and plan are traced.

    Returns:
        Timesteps, argument sizes and memory use.
    """
    layers = [spec.name for spec in state.calibration.layers]
    names = dict.fromkeys((*reconstruction_blocks(state.denoiser, state.family, layers), *layers))
    outputs: dict[tuple[Any, ...], Any] = {}
    memories: list[CallMemory] = []
    timesteps, sizes = [], []
    with start(state.pipe, state.family.component, state.batches[0][:1], state.recipe.plan) as trajectory:
        while (call := trajectory.request) is not None:
            arguments = (call.args, call.kwargs)
            shapes = tuple(value.shape for value in tree_iter(arguments) if isinstance(value, Tensor))
            if shapes not in outputs:
                outputs[shapes], memory = measure_call_memory(state.denoiser, call, names)
                memories.append(memory)
            timesteps.append(call.timestep)
            sizes.append(tensor_bytes(arguments))
            trajectory.answer(copy.deepcopy(outputs[shapes]))  # the pipeline may modify its input in place
    modules = {name: use for call_memory in reversed(memories) for name, use in call_memory.modules.items()}
    return PipelineTrace(
        tuple(timesteps), tuple(sizes), CallMemory(max(call_memory.most for call_memory in memories), modules)
    )


def sample_bytes(state: QuantizationState, trace: PipelineTrace) -> list[int]:
    """Lists the argument bytes of the denoiser calls that this process samples for learned rounding.

    The list has one entry per sampled prompt and call. It is empty if this process has no samples.
    """
    return [
        size
        for call, size in enumerate(trace.argument_bytes)
        for piece in sample_pieces(state.batches, state.session.ranks)
        if is_sample(call, piece.index, piece.batches)
        for _ in piece.batch.prompts
    ]
