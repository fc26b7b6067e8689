"""Activation grids over the denoising steps, keyed by timestep and looked up by nearest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, TypeAlias

from bitbrush.numerics.affine import AffineGrid
from bitbrush.timeline.tracker import TRACKER


@dataclass(frozen=True)
class ActivationSchedule:
    """One grid per calibrated timestep; ``timesteps`` strictly descending, the noisiest first.

    Keyed by noise level and not by loop index, so that it is exact for the plan it was calibrated with and still
    right when another step count or scheduler is used. A schedule of one entry is a static range.
    """

    timesteps: tuple[float, ...]
    grids: tuple[AffineGrid, ...]

    def __post_init__(self) -> None:
        if len(self.timesteps) != len(self.grids) or not self.grids:
            raise ValueError(f"{len(self.timesteps)} timesteps for {len(self.grids)} grids; one each, at least one")
        if any(a <= b for a, b in zip(self.timesteps, self.timesteps[1:], strict=False)):
            raise ValueError(f"timesteps are {self.timesteps}; they must strictly descend")

    @classmethod
    def static(cls, grid: AffineGrid) -> Self:
        return cls((0.0,), (grid,))

    @classmethod
    def of(cls, grids: Mapping[float, AffineGrid]) -> Self:
        timesteps = tuple(sorted(grids, reverse=True))
        return cls(timesteps, tuple(grids[timestep] for timestep in timesteps))

    def at(self, timestep: float) -> AffineGrid:
        """The grid of the nearest calibrated timestep; of two equally near the noisier one."""
        return self.grids[nearest(self.timesteps, timestep)]

    def now(self) -> AffineGrid:
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
