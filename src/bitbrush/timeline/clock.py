"""Tells the quantized layers which timestep the denoiser is running."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Clock:
    """Reads the ``timestep`` argument of every call of the denoiser it is attached to."""

    def __init__(self) -> None:
        self._timestep: float | None = None

    @property
    def timestep(self) -> float:
        """Raises RuntimeError before the first call of the denoiser."""
        if self._timestep is None:
            raise RuntimeError("a quantized layer ran before its denoiser was called: no timestep is known")
        return self._timestep

    def attach(self, denoiser: nn.Module) -> RemovableHandle:
        timestep_of = timestep_reader(denoiser)

        def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._timestep = timestep_of(args, kwargs)

        return denoiser.register_forward_pre_hook(read, with_kwargs=True)


def timestep_argument(denoiser: nn.Module) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
    """A function from the denoiser's call arguments to the one named ``timestep``, as it is.

    Raises TypeError if the denoiser takes no argument of that name.
    """
    parameters = list(inspect.signature(denoiser.forward).parameters)
    if "timestep" not in parameters:
        raise TypeError(f"{type(denoiser).__name__}.forward takes {parameters}, no 'timestep'; it is not a denoiser")
    position = parameters.index("timestep")
    return lambda args, kwargs: kwargs["timestep"] if "timestep" in kwargs else args[position]


def timestep_reader(denoiser: nn.Module) -> Callable[[tuple[Any, ...], dict[str, Any]], float]:
    """A function from the denoiser's call arguments to its timestep.

    A tensor of one timestep per sample must hold one value only: a batch is at one step. Raises TypeError if the
    denoiser takes no argument of that name.
    """
    argument = timestep_argument(denoiser)

    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        value = argument(args, kwargs)
        if isinstance(value, Tensor) and value.numel() > 1:
            low, high = float(value.min()), float(value.max())
            if low != high:
                raise ValueError(f"one denoiser call holds timesteps from {low} to {high}; one call is one step")
            return low
        return float(value)

    return read
