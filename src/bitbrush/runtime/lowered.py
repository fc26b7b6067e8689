"""What a lowered denoiser tells of itself."""

from dataclasses import dataclass

from torch import nn

from bitbrush.runtime.choose import Choice
from bitbrush.runtime.interface import Execution

_ATTRIBUTE = "bitbrush_lowered"


@dataclass(frozen=True)
class Lowered:
    """The executor of a denoiser and what became of each quantized layer."""

    runtime: str
    description: str
    reason: str
    executions: tuple[Execution, ...]
    shortfall: str | None = None

    @property
    def fallbacks(self) -> tuple[Execution, ...]:
        """The layers that are not computed in integers."""
        return tuple(one for one in self.executions if one.fallback is not None)


def note_lowered(denoiser: nn.Module, choice: Choice, executions: tuple[Execution, ...]) -> None:
    """Lets ``denoiser`` remember how it is executed."""
    runtime = choice.runtime
    lowered = Lowered(runtime.name, runtime.description, choice.reason, executions, choice.shortfall)
    setattr(denoiser, _ATTRIBUTE, lowered)


def lowered_of(denoiser: nn.Module) -> Lowered | None:
    """How a denoiser is executed; None where it computes in floating point."""
    found = getattr(denoiser, _ATTRIBUTE, None)
    return found if isinstance(found, Lowered) else None
