"""Activation qparams of all layers and timesteps on the device, so that the host need not know the timestep.

Kernels read the scales and zero points of a step from buffers at fixed addresses, which a denoiser call fills first. So
no kernel is compiled or launched anew for a step, and a recorded CUDA graph serves all steps. A timestep that is on the
GPU stays there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitbrush.numerics.affine import QParams, reciprocal
from bitbrush.runtime.fused_ops import BYTE
from bitbrush.timeline.schedule import ActivationSchedule
from bitbrush.timeline.tracker import NO_TIMESTEP


@dataclass(frozen=True, eq=False)
class StepQParams:
    """Quantization parameters of a schedule at the current step; equal schedules share one object.

    ``integers`` is (4,) int32: zero point, qmax, whether activations have two bytes, and the zero point of the stored
    bytes, each of which is less half its range.
    """

    schedule: ActivationSchedule
    steps: "Steps"
    row: Tensor
    integers: Tensor

    @property
    def scales(self) -> Tensor:
        """Scale and reciprocal, (4,) float32.

        Raises:
            RuntimeError: No denoiser call is running, so there is no step.
        """
        if not self.steps.known:
            raise RuntimeError(NO_TIMESTEP)
        return self.row

    @property
    def wide(self) -> bool:
        """Whether some steps have two bytes."""
        return self.most_bits > BYTE

    @property
    def most_bits(self) -> int:
        """Largest number of activation bits over all steps."""
        return max(qparams.bits for qparams in self.schedule.qparams)


class Steps:
    """Buffers of the current step's quantization parameters.

    Args:
        device: Device of the buffers.
        schedules: Largest number of different schedules.
    """

    def __init__(self, device: torch.device, schedules: int) -> None:
        self.device = device
        self.known = False
        self._scales = torch.zeros(schedules, 4, dtype=torch.float32, device=device)
        self._integers = torch.zeros(schedules, 4, dtype=torch.int32, device=device)
        self._known: dict[ActivationSchedule, StepQParams] = {}
        self._tables: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def empty(self) -> bool:
        """Whether no layer has scheduled quantization parameters."""
        return not self._known

    def qparams(self, schedule: ActivationSchedule) -> StepQParams:
        """Returns the current quantization parameters of a schedule, and registers it on first use."""
        if schedule not in self._known:
            row = len(self._known)
            self._known[schedule] = StepQParams(schedule, self, self._scales[row], self._integers[row])
            self._tables = None
        return self._known[schedule]

    def set(self, timestep: Tensor) -> None:
        """Sets all qparams to those of the scheduled timestep nearest to ``timestep``, the noisier one in a tie.

        The device is not synchronized. ``timestep`` holds one value or equal ones. If they differ, all scales are NaN,
        and so are all results: a denoiser call has one step.
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
        """Ends a call: until the next one there is no step."""
        self.known = False

    def tabulate(self) -> None:
        """Copies all registered schedules to the device, before the first call, so that no call compiles or records it.

        The tables are timesteps (schedules, steps) and the buffers' contents for each; shorter schedules are padded.
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
    halves = (qparams.qmax + 1) // 2 + (128 if two else 0)  # of the high byte, times 256, and of the low byte
    return qparams.zero_point, qparams.qmax, int(two), qparams.zero_point - halves
