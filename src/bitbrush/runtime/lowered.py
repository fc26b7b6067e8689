"""What a lowered denoiser tells of itself."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from bitbrush.network.layers import QuantizedLayer
from bitbrush.runtime.choose import Choice
from bitbrush.runtime.interface import Execution
from bitbrush.runtime.refusals import refuse_unquantized

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
    def name(self) -> str:
        """Of the executor, with what it computes."""
        return f"{self.runtime}: {self.description}"


def lower(denoiser: nn.Module, choice: Choice, layers: Iterable[QuantizedLayer]) -> None:
    """Lets the chosen runtime execute ``denoiser``, which remembers how, and refuses what it cannot be."""
    runtime = choice.runtime
    refuse_unquantized(denoiser)
    executions = runtime.lower(denoiser, layers)
    lowered = Lowered(runtime.name, runtime.description, choice.reason, executions, choice.shortfall)
    setattr(denoiser, _ATTRIBUTE, lowered)


def lowered_of(denoiser: nn.Module) -> Lowered | None:
    """How a denoiser is executed; None where it computes in floating point."""
    found = getattr(denoiser, _ATTRIBUTE, None)
    return found if isinstance(found, Lowered) else None
