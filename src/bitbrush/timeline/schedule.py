"""Activation grids over the denoising steps, keyed by timestep and looked up by nearest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, TypeAlias

from bitbrush.numerics.affine import QParams
from bitbrush.timeline.tracker import TRACKER


@dataclass(frozen=True)
class ActivationSchedule:
    """One grid per calibrated timestep; ``timesteps`` strictly descending, the noisiest first.

    Keyed by noise level and not by loop index, so that it is exact for the plan it was calibrated with and still
    right when another step count or scheduler is used. A schedule of one entry is a static range.
    """

    timesteps: tuple[float, ...]
    qparams: tuple[QParams, ...]

    def __post_init__(self) -> None:
        if len(self.timesteps) != len(self.qparams) or not self.qparams:
            raise ValueError(f"{len(self.timesteps)} timesteps for {len(self.qparams)} grids; one each, at least one")
        if any(a <= b for a, b in zip(self.timesteps, self.timesteps[1:], strict=False)):
            raise ValueError(f"timesteps are {self.timesteps}; they must strictly descend")

    @classmethod
    def static(cls, qparams: QParams) -> Self:
        return cls((0.0,), (qparams,))

    @classmethod
    def of(cls, all_qparams: Mapping[float, QParams]) -> Self:
        timesteps = tuple(sorted(all_qparams, reverse=True))
        return cls(timesteps, tuple(all_qparams[timestep] for timestep in timesteps))

    def at(self, timestep: float) -> QParams:
        """The grid of the nearest calibrated timestep; of two equally near the noisier one."""
        return self.qparams[nearest(self.timesteps, timestep)]

    def now(self) -> QParams:
        """The grid of the running denoiser call. Raises RuntimeError outside of one."""
        return self.at(TRACKER.timestep)


@dataclass(frozen=True)
class DynamicRanges:
    """No schedule: ranges are the extremes of what comes, found at run time, on 2^bits values at every step.

    Of every token by itself in a linear layer, of every image in a convolution.
    """

    bits: int


Activations: TypeAlias = ActivationSchedule | DynamicRanges


def nearest(timesteps: tuple[float, ...], timestep: float) -> int:
    """Index of the entry of descending ``timesteps`` nearest to ``timestep``, the first of two equally near."""
    low, high = 0, len(timesteps) - 1
    while low < high:
        middle = (low + high) // 2
        if timesteps[middle] - timestep > timestep - timesteps[middle + 1]:
            low = middle + 1
        else:
            high = middle
    return low
