"""Inputs on their grids while rounding is learned, so that weights make up for the errors of activations as well.

BRECQ (arXiv 2102.05426) and QDrop (arXiv 2203.05740, section 3) reconstruct blocks with quantized activations. Nothing
is dropped at random here: the start is the closed form of :mod:`bitbrush.rounding.compensation` on such inputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.numerics.affine import AffineGrid, reciprocal
from bitbrush.timeline.schedule import ActivationSchedule


class QuantizedInputs:
    """Makes the layers of ``network`` see their inputs quantized while :meth:`at`, straight through for gradients.

    ``schedules``: by layer name; other layers see theirs as they are.
    """

    def __init__(self, network: nn.Module, schedules: Mapping[str, ActivationSchedule]) -> None:
        self._schedules = schedules
        self._now: Sequence[float] = ()
        for name in schedules:
            network.get_submodule(name).register_forward_pre_hook(self._seeing(name))

    @contextmanager
    def at(self, timesteps: Sequence[float]) -> Iterator[None]:
        """While entered, the rows of every layer's input are of these timesteps."""
        before, self._now = self._now, timesteps
        try:
            yield
        finally:
            self._now = before

    def seen(self, name: str, x: Tensor, timesteps: Sequence[float]) -> Tensor:
        """What the layer sees of its input ``x`` (rows, ...), a timestep for each row.

        Raises ValueError where the layer is given another number of rows than its block.
        """
        schedule = self._schedules.get(name)
        if schedule is None:
            return x
        if len(x) != len(timesteps):
            raise ValueError(
                f"layer {name} is given {len(x)} rows where its block has {len(timesteps)}; round with "
                "rounding = learned, which does not have to know their timesteps"
            )
        return on_grids(x, [schedule.at(timestep) for timestep in timesteps])

    def _seeing(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            return (self.seen(name, args[0], self._now), *args[1:]) if self._now else None

        return hook


def on_grids(x: Tensor, grids: Sequence[AffineGrid]) -> Tensor:
    """Each row of ``x`` (rows, ...) on its own grid, as :func:`~bitbrush.numerics.affine.fake_quantize` has it.

    The gradient is 1 within the grid's range and 0 outside.
    """
    per_row = torch.tensor(
        [(reciprocal(one), -one.zero_point, one.qmax - one.zero_point, one.scale) for one in grids], device=x.device
    ).view(len(grids), 4, *(1,) * (x.dim() - 1))
    factor, low, high, scale = per_row.unbind(1)
    u = (x * factor).clamp(low, high)
    return (u + (u.round() - u).detach()) * scale
