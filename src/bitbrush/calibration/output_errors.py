"""How far the quantized denoiser's output is off on average at each step, measured while the steps are calibrated."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.network.output_correction import OutputCorrection, channel_dimension, less_means, prediction
from bitbrush.session.costs import CallCounter
from bitbrush.session.ranks import ALONE, Ranks
from bitbrush.timeline.trajectory import DenoiserCall

COMPARING_CALLS = 1
"""Denoiser calls, of ``full``, for each that the pipeline makes."""


class OutputErrors:
    """``mean_c(eps_hat - eps)`` over samples and positions: ``full`` against the quantized denoiser, given the same.

    What the visits of one timestep measure counts together.
    """

    def __init__(self, full: nn.Module, calls: CallCounter, ranks: Ranks = ALONE) -> None:
        self._full, self._calls, self._ranks = full, calls, ranks
        self._sums: dict[float, Tensor] = {}

    def corrected(self, calls: Sequence[DenoiserCall], outputs: Sequence[Any]) -> list[Any]:
        """``outputs`` of the quantized denoiser less the means of this and earlier visits of their timestep.

        All ``calls`` are of one timestep; they may be the share of one of several processes.
        """
        timestep = calls[0].timestep
        pairs = zip(calls, outputs, strict=True)
        sums = sum(_sums(prediction(output) - prediction(call.run(self._full))) for call, output in pairs)
        self._calls.add()
        assert isinstance(sums, Tensor)
        self._sums[timestep] = self._sums.get(timestep, 0) + self._ranks.sum(sums)
        return [less_means(output, self._means(timestep)) for output in outputs]

    def correction(self) -> OutputCorrection:
        """Of all timesteps that were visited."""
        return OutputCorrection.of({timestep: self._means(timestep) for timestep in self._sums})

    def _means(self, timestep: float) -> Tensor:
        *sums, count = self._sums[timestep]
        return torch.stack(sums).div(count).float()


def _sums(errors: Tensor) -> Tensor:
    """(C + 1,) float64: of every channel, and how many numbers each has."""
    by_channel = errors.double().transpose(0, channel_dimension(errors)).flatten(1)
    return torch.cat([by_channel.sum(1), by_channel.new_tensor([by_channel.shape[1]])])
