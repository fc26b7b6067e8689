"""The largest magnitude of every channel of layers' inputs over the trajectories."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.session.session import Session
from bitbrush.timeline.trajectory import Trajectory, lockstep, pending

CHANNEL_CALLS = 1
"""Denoiser calls of :func:`observe_channels` for each that the pipeline makes."""
CHANNELS_TITLE = "observing channels"
"""Under which progress is reported."""


def observe_channels(
    denoiser: nn.Module, layers: Sequence[str], trajectories: Sequence[Trajectory], session: Session
) -> dict[str, Tensor]:
    """Returns ``max |x_j|`` of every channel j, (C,), by layer; channels are the input's last dimension.

    Runs the trajectories to their end with ``denoiser`` as it is, one call per step and prompt batch. They may be the
    share of one process; each process receives what all of them observed.
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
