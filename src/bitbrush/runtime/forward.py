"""The ``forward`` of a denoiser that is lowered for the processor: types and the timestep are state of the call."""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from bitbrush.network.compiling import not_compiled
from bitbrush.runtime.arguments import answer_like, by_name, cast, sample_of
from bitbrush.timeline.tracker import TRACKER, argument_names, as_timestep


class LoweredForward:
    """Computes in ``dtype`` whatever the caller's type is, and answers in the type of the caller's sample.

    Tensors that a denoiser embeds stay as they are (EXACT_ARGUMENTS). Layers find the timestep in the TRACKER. Nothing
    is kept from one call to another, so that threads may share a denoiser. ``torch.compile`` runs the call as it is.
    The denoiser's class is asked for its forward at each call, as libraries replace either; a forward that the runtime
    has put in place of it comes first.
    """

    def __init__(self, denoiser: nn.Module, dtype: torch.dtype, device: torch.device | None) -> None:
        functools.update_wrapper(self, denoiser.forward, updated=())
        self._denoiser, self._inner = denoiser, vars(denoiser).get("forward")
        self._names = argument_names(denoiser)
        self._dtype, self._device = dtype, device

    @not_compiled
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Takes the arguments of the denoiser's own forward."""
        arguments = by_name(self._names, args, kwargs)
        sample = sample_of(self._names, arguments)
        with TRACKER.at(as_timestep(arguments.get("timestep"))), _without_autocast(sample.device):
            given = cast(arguments, self._dtype, self._device)
            inner = self._inner
            output = inner(**given) if inner else type(self._denoiser).forward(self._denoiser, **given)
        return answer_like(sample, output)


def compute_in(denoiser: nn.Module, dtype: torch.dtype, device: torch.device | None = None) -> None:
    """Makes calls of ``denoiser`` compute in ``dtype``, on ``device`` where one is given; see :class:`LoweredForward`.

    Raises TypeError if the denoiser takes no argument ``timestep``.
    """
    denoiser.forward = LoweredForward(denoiser, dtype, device)


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast would round the integers' products to half precision."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
