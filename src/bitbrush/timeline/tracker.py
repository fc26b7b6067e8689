"""Tracker through which quantized layers learn the timestep that their denoiser runs."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

NO_TIMESTEP = (
    "a quantized layer ran outside of its denoiser's call: no timestep is known; a forward that is set in place of the "
    "denoiser's must call the one that it replaces"
)


class TimestepTracker:
    """Timestep of the denoiser call in the current thread or asyncio task.

    The timestep is state of the call, not of the denoiser. Threads that share a denoiser run different timesteps, and
    so do copies of one. A nested call hides the timestep of the outer one until it returns.
    """

    def __init__(self) -> None:
        self._timestep: ContextVar[float] = ContextVar("timestep")

    @property
    def timestep(self) -> float:
        """Timestep of the running call.

        Raises:
            RuntimeError: No denoiser call is running.
        """
        try:
            return self._timestep.get()
        except LookupError:
            raise RuntimeError(NO_TIMESTEP) from None

    @contextmanager
    def at(self, timestep: float) -> Iterator[None]:
        """Makes ``timestep`` the current one while entered."""
        token = self._timestep.set(timestep)
        try:
            yield
        finally:
            self._timestep.reset(token)


TRACKER = TimestepTracker()
"""The process's only tracker. It stores nothing of a denoiser, so copies of a denoiser may share it."""


ONLY_STEP = 0.0
"""Timestep of a network that takes none, such as a VAE."""
TIME_ARGUMENTS = ("timestep", "timesteps", "t", "sigma")
"""Names under which denoisers take their timestep; the first that a denoiser has counts."""


def argument_names(denoiser: nn.Module) -> tuple[str, ...]:
    """Returns the names of the denoiser's arguments, in order."""
    return tuple(inspect.signature(denoiser.forward).parameters)


def takes_time(network: nn.Module) -> bool:
    """Returns whether a network is called with a timestep."""
    return not set(TIME_ARGUMENTS).isdisjoint(argument_names(network))


def time_argument(denoiser: nn.Module) -> str:
    """Returns the name of the denoiser's timestep.

    Raises:
        TypeError: No argument has one of the names TIME_ARGUMENTS.
    """
    names = argument_names(denoiser)
    for name in TIME_ARGUMENTS:
        if name in names:
            return name
    raise TypeError(
        f"{type(denoiser).__name__}.forward takes {list(names)}, none of {list(TIME_ARGUMENTS)}; it is not a denoiser"
    )


def timestep_reader(denoiser: nn.Module) -> Callable[[tuple[Any, ...], dict[str, Any]], float]:
    """Returns a function from the denoiser's call arguments to its timestep, as :func:`as_timestep` reads it.

    Raises:
        TypeError: The denoiser takes no timestep.
    """
    name = time_argument(denoiser)
    position = argument_names(denoiser).index(name)
    return lambda args, kwargs: as_timestep(kwargs[name] if name in kwargs else args[position])


def as_timestep(value: Any) -> float:
    """Reads the timestep of a denoiser call from its argument: a number, or a tensor of one timestep per sample.

    Raises:
        ValueError: The samples differ (one call is one step), or the argument is None.
    """
    if value is None:
        raise ValueError("timestep is None; a quantized denoiser has scales for each timestep: give it one")
    if isinstance(value, Tensor) and value.numel() > 1:
        low, high = float(value.min()), float(value.max())
        if low != high:
            raise ValueError(
                f"one denoiser call holds timesteps from {low} to {high}; one call is one step: give all samples one"
            )
        return low
    return float(value)
