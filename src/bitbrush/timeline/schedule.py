"""Activation quantization parameters over the denoising steps, looked up by the nearest timestep."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, TypeAlias

from bitbrush.numerics.affine import QParams
from bitbrush.numerics.limits import MAX_BITS, MIN_BITS
from bitbrush.timeline.tracker import TRACKER


@dataclass(frozen=True)
class ActivationSchedule:
    """Quantization parameters of each calibrated timestep.

    ``timesteps`` descend strictly, the noisiest first. The key is the noise level and not the loop index. So the
    schedule is exact for the calibrated plan, and still right with another step count or scheduler. A schedule of one
    entry is a static range.
    """

    timesteps: tuple[float, ...]
    qparams: tuple[QParams, ...]

    def __post_init__(self) -> None:
        if len(self.timesteps) != len(self.qparams) or not self.qparams:
            raise ValueError(f"{len(self.timesteps)} timesteps for {len(self.qparams)} qparams; one each, at least one")
        if not all(a > b for a, b in zip(self.timesteps, self.timesteps[1:], strict=False)):  # NaN is in no order
            raise ValueError(f"timesteps are {self.timesteps}; they must strictly descend")

    @classmethod
    def static(cls, qparams: QParams) -> Self:
        """Creates a schedule with the same parameters at all timesteps."""
        return cls((0.0,), (qparams,))

    @classmethod
    def of(cls, all_qparams: Mapping[float, QParams]) -> Self:
        """Creates a schedule from parameters by timestep."""
        timesteps = tuple(sorted(all_qparams, reverse=True))
        return cls(timesteps, tuple(all_qparams[timestep] for timestep in timesteps))

    def at(self, timestep: float) -> QParams:
        """Returns the parameters of the nearest calibrated timestep; of two equally near, the noisier one's."""
        return self.qparams[nearest(self.timesteps, timestep)]

    def now(self) -> QParams:
        """Returns the parameters of the running denoiser call.

        Raises:
            RuntimeError: No denoiser call is running.
        """
        return self.at(TRACKER.timestep)


@dataclass(frozen=True)
class DynamicRanges:
    """Ranges computed at run time from the extremes of the input, with ``bits`` bits at every step.

    Each token of a linear layer and each image of a convolution has its own range.
    """

    bits: int

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f"bits is {self.bits}; supported are {MIN_BITS} to {MAX_BITS}")


Activations: TypeAlias = ActivationSchedule | DynamicRanges


def nearest(timesteps: tuple[float, ...], timestep: float) -> int:
    """Finds the index of the nearest entry of descending ``timesteps``; of two equally near, the first."""
    low, high = 0, len(timesteps) - 1
    while low < high:
        middle = (low + high) // 2
        if timesteps[middle] - timestep > timestep - timesteps[middle + 1]:
            low = middle + 1
        else:
            high = middle
    return low
