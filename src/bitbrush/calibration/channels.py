"""What the channels of layers' inputs are over the trajectories: their largest magnitudes, and samples of tokens."""

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.timeline.cost import CallCounter
from bitbrush.timeline.progress import Progress
from bitbrush.timeline.ranks import ALONE, Ranks
from bitbrush.timeline.spool import IN_MEMORY, Spool
from bitbrush.timeline.trajectory import Trajectory, pending

CHANNEL_CALLS = 1
"""Denoiser calls of :func:`observe_channels` for each that the pipeline makes."""
TOKENS = 4
"""Of each row of a batch that are kept as samples."""


@dataclass
class Channels:
    """``extremes``: ``max |x_j|`` of every channel j, (C,); ``samples``: some tokens of each kept step, (tokens, C)."""

    extremes: Tensor
    samples: list[Tensor] = field(default_factory=list)


def observe_channels(
    denoiser: nn.Module,
    layers: Sequence[str],
    trajectories: Sequence[Trajectory],
    progress: Progress,
    calls: CallCounter,
    *,
    kept_steps: Collection[int] = (),
    spool: Spool = IN_MEMORY,
    ranks: Ranks = ALONE,
) -> dict[str, Channels]:
    """By layer; channels are the input's last dimension. Samples are those of ``kept_steps``, put away by ``spool``.

    Runs the trajectories to their end with ``denoiser`` as it is, one call per step and prompt batch; they may be the
    share of one process of ``ranks``, each of which is given what all observed.
    """
    found: dict[str, Channels] = {}
    now: dict[str, list[Tensor]] = {}
    with ExitStack() as stack, progress(TITLE, len(pending(trajectories)[0].planned)) as advance:
        for name in layers:
            hook = denoiser.get_submodule(name).register_forward_pre_hook(_watch(name, found, now))
            stack.callback(hook.remove)
        while waiting := pending(trajectories):
            now.clear()
            for trajectory, call in zip(trajectories, waiting, strict=True):
                trajectory.answer(call.run(denoiser))
            if calls.per_batch in kept_steps:
                for name in layers:
                    found[name].samples.append(spool.put_away(_of_all(torch.cat(now[name]), ranks)))
            calls.add()
            advance()
    for channels in found.values():
        channels.extremes = ranks.most(channels.extremes)
    return {name: found[name] for name in layers}


def _watch(
    name: str, found: dict[str, Channels], now: dict[str, list[Tensor]]
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].detach()
        tokens = x.reshape(len(x), -1, x.shape[-1])
        largest = tokens.abs().amax((0, 1))
        known = found.setdefault(name, Channels(largest))
        known.extremes = torch.maximum(known.extremes, largest)
        every = -(-tokens.shape[1] // TOKENS)
        now.setdefault(name, []).append(tokens[:, ::every].flatten(0, 1))

    return hook


def _of_all(samples: Tensor, ranks: Ranks) -> Tensor:
    """The samples of all processes, (tokens, C)."""
    everything, _ = ranks.join(samples.flatten())  # sums with zeros are exact
    return everything.view(-1, samples.shape[1])
