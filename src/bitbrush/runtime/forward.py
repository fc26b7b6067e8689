"""The ``forward`` of a lowered denoiser: dtypes and the timestep are state of the call."""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from bitbrush.network.compiling import not_compiled
from bitbrush.runtime.arguments import answer_like, by_name, cast, require_no_gradient, sample_of
from bitbrush.runtime.attention import AttentionKernel, KernelAttention
from bitbrush.timeline.tracker import ONLY_STEP, TRACKER, argument_names, as_timestep, takes_time, time_argument


class LoweredForward:
    """Forward that computes in ``dtype`` for any input dtype and returns the dtype of the sample.

    Tensors that a denoiser embeds keep their dtype (EXACT_ARGUMENTS). Layers read the timestep from TRACKER; a network
    without a timestep has one step. No state outlives a call, so threads may share a denoiser. ``torch.compile`` does
    not trace the call.

    The forward is looked up on the denoiser's class at each call, since libraries replace either. A forward that the
    runtime has put on the instance takes precedence.

    Raises:
        ValueError: An argument requires a gradient while gradients are enabled.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        dtype: torch.dtype,
        device: torch.device | None,
        attention: AttentionKernel | None = None,
    ) -> None:
        functools.update_wrapper(self, denoiser.forward, updated=())
        self._denoiser, self._inner = denoiser, vars(denoiser).get("forward")
        self._names = argument_names(denoiser)
        self._time = time_argument(denoiser) if takes_time(denoiser) else None
        self._dtype, self._device, self._attention = dtype, device, attention

    @not_compiled
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Takes the arguments of the denoiser's original forward."""
        arguments = by_name(self._names, args, kwargs)
        require_no_gradient(arguments)
        sample = sample_of(self._names, arguments)
        timestep = ONLY_STEP if self._time is None else as_timestep(arguments.get(self._time))
        attention = KernelAttention(self._attention) if self._attention else nullcontext()
        with TRACKER.at(timestep), _without_autocast(sample.device), attention:
            given = cast(arguments, self._dtype, self._device)
            inner = self._inner
            output = inner(**given) if inner else type(self._denoiser).forward(self._denoiser, **given)
        return answer_like(sample, output)


def compute_in(
    denoiser: nn.Module,
    dtype: torch.dtype,
    device: torch.device | None = None,
    attention: AttentionKernel | None = None,
) -> None:
    """Makes ``denoiser`` compute in ``dtype``, on ``device`` unless it is None; see :class:`LoweredForward`.

    Args:
        denoiser: Changed in place.
        dtype: Dtype of the computation.
        device: Device of the computation; None: that of the arguments.
        attention: Kernel for the attention of blocks that are not fused; None: torch's.
    """
    denoiser.forward = LoweredForward(denoiser, dtype, device, attention)


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Disables autocast, which would round the products of integers to half precision."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
