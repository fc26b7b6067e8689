"""Largest input magnitude per channel over the calibration trajectories."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.session.session import Session
from bitbrush.timeline.trajectory import Trajectory, lockstep, pending

CHANNEL_CALLS = 1
"""Denoiser calls of :func:`observe_channels` per denoiser call of the pipeline."""
CHANNELS_TITLE = "observing channels"
"""Title of progress reports."""


def observe_channels(
    denoiser: nn.Module, layers: Sequence[str], trajectories: Sequence[Trajectory], session: Session
) -> dict[str, Tensor]:
    """Measures ``max |x_j|`` of every input channel j over the trajectories; channels are the last dimension.

    The trajectories run to their end with ``denoiser`` unchanged, one call per step and prompt batch. They may be the
    shard of one process; every process receives the maximum over all processes.

    Args:
        denoiser: Denoiser whose layers are observed.
        layers: Layer names.
        trajectories: Pipeline calls, each suspended at its first denoiser call.
        session: Processes, progress and costs.

    Returns:
        Maximum magnitudes, (C,), by layer.
    """
    extremes: dict[str, Tensor] = {}
    steps = len(pending(trajectories)[0].planned)
    with ExitStack() as stack, session.progress(CHANNELS_TITLE, steps) as advance:
        for name in layers:
            hook = denoiser.get_submodule(name).register_forward_pre_hook(_watch(name, extremes))
            stack.callback(hook.remove)
        for calls in lockstep(trajectories):
            for trajectory, call in zip(trajectories, calls, strict=True):
                trajectory.answer(call.run(denoiser))
            session.count_call()
            advance()
    return {name: session.ranks.most(extremes[name]) for name in layers}


def _watch(name: str, extremes: dict[str, Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].detach()
        largest = x.reshape(-1, x.shape[-1]).abs().amax(0)
        extremes[name] = torch.maximum(extremes.get(name, largest), largest)

    return hook
