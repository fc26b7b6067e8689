"""Activation grids of all layers and timesteps, as tensors on the device: the host never has to know the timestep.

A step's scales and zero points lie in buffers of their own, at the same place for every step, which kernels read. A
denoiser call begins by filling them. So no kernel is compiled or launched anew for a step, a recorded CUDA graph serves
all of them, and a timestep that is on the card stays there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitbrush.numerics.affine import QParams, reciprocal
from bitbrush.runtime.fused_ops import BYTE
from bitbrush.timeline.schedule import ActivationSchedule
from bitbrush.timeline.tracker import NO_TIMESTEP

_SHIFT_OF_ONE_BYTE = 128
_SHIFT_OF_TWO = 128 * 257
"""What sums lack because every byte of the activations is stored less 128."""


@dataclass(frozen=True, eq=False)
class StepQParams:
    """The grid of a schedule, now; layers of equal schedules have one and the same.

    ``integers`` (4,) int32: zero point, qmax, whether activations have two bytes, and what is taken off sums for every
    unit of weight. ``wide``: some steps have two bytes.
    """

    schedule: ActivationSchedule
    steps: "Steps"
    row: Tensor
    integers: Tensor

    @property
    def scales(self) -> Tensor:
        """(4,) float32: scale, reciprocal. Raises RuntimeError outside of a denoiser call, whose step it is."""
        if not self.steps.known:
            raise RuntimeError(NO_TIMESTEP)
        return self.row

    @property
    def wide(self) -> bool:
        return self.most_bits > BYTE

    @property
    def most_bits(self) -> int:
        return max(qparams.bits for qparams in self.schedule.qparams)


class Steps:
    """``device``: of the buffers. At most ``schedules`` different schedules. ``known``: whether a step is, now."""

    def __init__(self, device: torch.device, schedules: int) -> None:
        self.device = device
        self.known = False
        self._scales = torch.zeros(schedules, 4, dtype=torch.float32, device=device)
        self._integers = torch.zeros(schedules, 4, dtype=torch.int32, device=device)
        self._known: dict[ActivationSchedule, StepQParams] = {}
        self._tables: tuple[Tensor, Tensor, Tensor] | None = None

    def qparams(self, schedule: ActivationSchedule) -> StepQParams:
        if schedule not in self._known:
            row = len(self._known)
            self._known[schedule] = StepQParams(schedule, self, self._scales[row], self._integers[row])
            self._tables = None
        return self._known[schedule]

    def set(self, timestep: Tensor) -> None:
        """From now on all grids are those nearest to ``timestep``, one or equal ones; of two equally near the noisier.

        Without waiting for the device. Where timesteps differ all scales are NaN, and with them all that is computed:
        a denoiser call is at one step.
        """
        self.known = True
        if self._tables is None:
            self.tabulate()
        if self._tables is None:
            return
        times, scales, integers = self._tables
        every = timestep.to(self.device, torch.float64).reshape(-1)
        first = every[0]
        index = (times - first).abs().argmin(1)
        rows = torch.arange(len(index), device=self.device)
        one = torch.where((every == first).all(), 1.0, torch.nan)
        self._scales[: len(rows)] = scales[rows, index] * one
        self._integers[: len(rows)] = integers[rows, index]

    def forget(self) -> None:
        """At the end of a call: what runs until the next one has no step."""
        self.known = False

    def tabulate(self) -> None:
        """Puts all grids known so far onto the device: before the first call, that none compiles or records this.

        Timesteps (schedules, steps), and by each what the buffers hold; shorter schedules are filled up.
        """
        if not self._known:
            return
        steps = max(len(schedule.timesteps) for schedule in self._known)
        times = torch.full((len(self._known), steps), torch.inf, dtype=torch.float64)
        scales = torch.zeros(len(self._known), steps, 4, dtype=torch.float32)
        integers = torch.zeros(len(self._known), steps, 4, dtype=torch.int32)
        for row, schedule in enumerate(self._known):
            count = len(schedule.timesteps)
            times[row, :count] = torch.tensor(schedule.timesteps, dtype=torch.float64)
            values = [(qparams.scale, reciprocal(qparams)) for qparams in schedule.qparams]
            scales[row, :count, :2] = torch.tensor(values, dtype=torch.float32)
            integers[row, :count] = torch.tensor(
                [_integers(qparams) for qparams in schedule.qparams], dtype=torch.int32
            )
        self._tables = times.to(self.device), scales.to(self.device), integers.to(self.device)


def _integers(qparams: QParams) -> tuple[int, int, int, int]:
    two = qparams.bits > BYTE
    shift = _SHIFT_OF_TWO if two else _SHIFT_OF_ONE_BYTE
    return qparams.zero_point, qparams.qmax, int(two), qparams.zero_point - shift
