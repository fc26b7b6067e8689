"""What a method is: a name, default keys, and the function that carries it out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from torch import nn

from bitbrush.calibration.ranges import ActivationBits, Calibration
from bitbrush.methods.recipe import DEFAULT_ACTIVATION_BITS, Recipe, check_activation_bits
from bitbrush.network.family import Family
from bitbrush.network.layers import LayerSpec, QuantizedLayer, layer_specs
from bitbrush.rounding.nearest import RoundedLayer
from bitbrush.timeline.cost import CostLedger
from bitbrush.timeline.journal import NO_JOURNAL, Journal
from bitbrush.timeline.progress import Progress
from bitbrush.timeline.ranks import ALONE, Ranks
from bitbrush.timeline.shares import own_pieces
from bitbrush.timeline.spool import IN_MEMORY, Spool
from bitbrush.timeline.trajectory import PromptBatch


@dataclass(frozen=True)
class Job:
    """One quantization: the pipeline (left as it is), the recipe, calibration prompts, and where to report.

    ``rounded``: weights to use as they are, from an earlier job with the same weight keys; None to round them.
    ``journal``: where finished pieces of the work are kept; ``spool``: where samples wait meanwhile. ``ranks``: the
    processes that share it, each with the whole of ``batches`` and its ``own`` share of them.
    """

    pipe: Any
    family: Family
    recipe: Recipe
    batches: tuple[PromptBatch, ...]
    progress: Progress
    costs: CostLedger
    rounded: Mapping[str, RoundedLayer] | None = None
    journal: Journal = NO_JOURNAL
    spool: Spool = IN_MEMORY
    ranks: Ranks = ALONE

    @property
    def own(self) -> tuple[PromptBatch, ...]:
        """The calibration batches, or parts of such, of this process."""
        return tuple(piece.batch for piece in own_pieces(self.batches, self.ranks))

    @property
    def denoiser(self) -> nn.Module:
        denoiser: nn.Module = getattr(self.pipe, self.family.component)
        return denoiser

    @cached_property  # every weight is looked at
    def specs(self) -> tuple[LayerSpec, ...]:
        return layer_specs(self.denoiser, self.family, weight_bits=self.recipe.weights, exclude=self.recipe.exclude)

    @property
    def calibration(self) -> Calibration:
        bits = ActivationBits(self.recipe.activations, self.recipe.relax)
        return Calibration(self.specs, bits, self.recipe.activation_range)


@dataclass(frozen=True)
class Outcome:
    """What a method yields: the treatment of every layer, the quantized ones, and the plan's timesteps in order."""

    specs: tuple[LayerSpec, ...]
    layers: tuple[QuantizedLayer, ...]
    planned: tuple[float, ...]


@dataclass(frozen=True)
class PlannedPhase:
    """A part of a method's ``run``: its name in the costs, the batches that it runs, and its denoiser calls.

    ``calls_per_step``: of each batch, for every denoiser call that the pipeline itself makes. ``on_rounded_weights``:
    they run a copy of the denoiser that has these, and its finished steps are kept.
    """

    name: str
    batches: Sequence[PromptBatch] = ()
    calls_per_step: int = 0
    on_rounded_weights: bool = False


def unprepared(job: Job) -> Job:
    """Most methods quantize the denoiser as it is."""
    return job


@dataclass(frozen=True)
class Method:
    """``defaults``: the method's recipe for a number of activation bits, which decide its ranges and relaxed bits.

    ``phases``: what ``prepare`` and ``run`` will do with a job, in order. ``prepare``: gives the job a pipeline that
    computes the same and is easier to quantize; not for a job whose weights are those of an artifact already.
    """

    name: str
    defaults: Callable[[int], Recipe]
    run: Callable[[Job], Outcome]
    phases: Callable[[Job], tuple[PlannedPhase, ...]]
    prepare: Callable[[Job], Job] = unprepared

    def recipe(self, keys: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
        """The defaults, updated by plain ``keys`` as in a recipe file. Raises ValueError as :meth:`Recipe.updated`."""
        activations = check_activation_bits(keys.get("activations", DEFAULT_ACTIVATION_BITS))
        return self.defaults(activations).updated(keys)
