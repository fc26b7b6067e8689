"""A pipeline's own call for one prompt, walked through without computing it."""

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
    """``timesteps`` of all denoiser calls, the bytes of each one's arguments, and the ``memory`` of the largest."""

    timesteps: tuple[float, ...]
    argument_bytes: tuple[int, ...]
    memory: CallMemory

    @property
    def distinct_timesteps(self) -> int:
        return len(set(self.timesteps))


def trace_pipeline(state: QuantizationState) -> PipelineTrace:
    """Every denoiser call that the pipeline makes, each answered by the output of a like one.

    A denoiser call is run for each combination of shapes alone, mostly once. So the count is exact for pipelines that
    call the denoiser twice in a step, skip guidance in some, or end early.
    """
    layers = [spec.name for spec in state.calibration.layers]
    names = dict.fromkeys((*reconstruction_blocks(state.denoiser, state.family, layers), *layers))
    outputs: dict[tuple[Any, ...], Any] = {}
    memories: list[CallMemory] = []
    timesteps, sizes = [], []
    with start(state.pipe, state.family.component, state.batches[0][:1], state.recipe.plan) as trajectory:
        while (call := trajectory.request) is not None:
            given = (call.args, call.kwargs)
            shapes = tuple(value.shape for value in tree_iter(given) if isinstance(value, Tensor))
            if shapes not in outputs:
                outputs[shapes], memory = measure_call_memory(state.denoiser, call, names)
                memories.append(memory)
            timesteps.append(call.timestep)
            sizes.append(tensor_bytes(given))
            trajectory.answer(copy.deepcopy(outputs[shapes]))  # the pipeline may write into it
    modules = {name: use for one in reversed(memories) for name, use in one.modules.items()}
    return PipelineTrace(tuple(timesteps), tuple(sizes), CallMemory(max(one.most for one in memories), modules))


def sample_bytes(state: QuantizationState, trace: PipelineTrace) -> list[int]:
    """Of every prompt's denoiser call that this process keeps for learned rounding; none where none is."""
    return [
        size
        for call, size in enumerate(trace.argument_bytes)
        for piece in sample_pieces(state.batches, state.session.ranks)
        if is_sample(call, piece.index, piece.batches)
        for _ in piece.batch.prompts
    ]
