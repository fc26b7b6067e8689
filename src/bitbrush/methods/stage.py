"""What a stage of a method is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bitbrush.methods.state import QuantizationState
from bitbrush.timeline.trajectory import PromptBatch

Run: TypeAlias = Callable[[QuantizationState], QuantizationState]


@dataclass(frozen=True)
class StageCalls:
    """Denoiser calls of a stage in this process: ``per_batch`` for each of ``batches``."""

    batches: Sequence[PromptBatch] = ()
    per_batch: int = 0

    @property
    def total(self) -> int:
        """Calls of all batches."""
        return len(self.batches) * self.per_batch


def always(_: QuantizationState) -> bool:
    """Every recipe wants the stage."""
    return True


def no_calls(_: QuantizationState, __: int) -> StageCalls:
    """The stage makes no denoiser calls of whole batches."""
    return StageCalls()


def accept(_: QuantizationState) -> None:
    """The stage takes every recipe."""


@dataclass(frozen=True)
class Stage:
    """One step of a method. The method's list of stages serves running, resuming, dry runs, progress and the docs.

    Args:
        name: The stage's name in progress reports, costs and docs, e.g. ``progressive calibration``.
        summary: One line for the docs.
        run: From the state before the stage to the state after it.
        wanted: Whether the recipe asks for the stage; asked when its turn comes, and before any stage for the plan.
        calls: Denoiser calls, given the number of calls that the pipeline itself makes.
        changes_network: Whether it replaces the denoiser. An artifact's denoiser has been replaced already, so
            recalibration leaves such stages out.
        check: Raises ValueError where the recipe asks for what the stage cannot do; computes nothing.
    """

    name: str
    summary: str
    run: Run
    wanted: Callable[[QuantizationState], bool] = always
    calls: Callable[[QuantizationState, int], StageCalls] = no_calls
    changes_network: bool = False
    check: Callable[[QuantizationState], None] = accept
