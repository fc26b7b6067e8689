"""What a method is: a name, default keys, and the function that carries it out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from torch import nn

from bitbrush.calibration.ranges import ActivationBits, Calibration
from bitbrush.methods.recipe import DEFAULT_ACTIVATION_BITS, FirstTokens, Recipe, check_activation_bits
from bitbrush.network.family import Family
from bitbrush.network.layers import LayerSpec, QuantizedLayer, layer_specs
from bitbrush.numerics.weights import QuantizedWeight
from bitbrush.rounding.nearest import RoundedLayer
from bitbrush.timeline.cost import CostLedger
from bitbrush.timeline.journal import NO_JOURNAL, Journal
from bitbrush.timeline.plan import Relaxation
from bitbrush.timeline.progress import PlannedWork, Progress
from bitbrush.timeline.ranks import ALONE, Ranks
from bitbrush.timeline.shares import own_pieces
from bitbrush.timeline.spool import IN_MEMORY, Spool
from bitbrush.timeline.trajectory import PromptBatch


@dataclass(frozen=True)
class AllocatedBits:
    """Measured bits: of weights by layer name, of activations by layer name and timestep; None: by the recipe's keys.

    ``average``: of activations, over all multiplications of the plan.
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    activations: Mapping[str, Mapping[float, int]] | None = None
    average: float | None = None


@dataclass(frozen=True)
class Job:
    """One quantization: the pipeline (left as it is), the recipe, calibration prompts, and where to report.

    ``rounded``: weights to use as they are, from an earlier job with the same weight keys; None to round them.
    ``original``: the pipeline that was given, where ``pipe`` has its convolutions split or layers branched; None where
    it has not. ``factors``: integers of the branches, by layer name, which no rounding changes.
    ``journal``: where finished pieces of the work are kept; ``spool``: where samples wait meanwhile. ``ranks``: the
    processes that share it, each with the whole of ``batches`` and its ``own`` share of them. ``allocated``: bits that
    were measured, once they are.
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
    allocated: AllocatedBits | None = None
    original: Any = None
    factors: Mapping[str, QuantizedWeight] = field(default_factory=dict)

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
        recipe = self.recipe
        specs = layer_specs(
            self.denoiser, self.family, weight_bits=recipe.weights, exclude=recipe.exclude, fine=recipe.fine
        )
        weights = self.allocated.weights if self.allocated else {}
        return tuple(replace(spec, weight_bits=weights.get(spec.name, spec.weight_bits)) for spec in specs)

    @property
    def calibration(self) -> Calibration:
        relax, allocated = self.recipe.relax, self.allocated.activations if self.allocated else None
        relaxation = relax if isinstance(relax, Relaxation) else None
        bits = ActivationBits(self.recipe.activations, relaxation, allocated)
        return Calibration(self.specs, bits, self.recipe.activation_range, self.first_token_layers)

    @property
    def first_token_layers(self) -> frozenset[str]:
        """That are not to quantize the first token of a text. Raises ValueError for a denoiser without such layers."""
        if self.recipe.first_token is FirstTokens.QUANTIZED:
            return frozenset()
        found = self.family.text_layers(self.denoiser)
        if not found:
            raise ValueError(
                f"first_token is {self.recipe.first_token}, but a denoiser of the family {self.family.name} has no "
                "layers that read a text with a start token only; leave it at quantized"
            )
        return frozenset(found) & {spec.name for spec in self.specs if spec.excluded is None}


@dataclass(frozen=True)
class Outcome:
    """What a method yields: the treatment of every layer, the quantized ones, and the plan's timesteps in order.

    ``average_activation_bits`` of measured ones, None where they follow from the recipe alone.
    """

    specs: tuple[LayerSpec, ...]
    layers: tuple[QuantizedLayer, ...]
    planned: tuple[float, ...]
    average_activation_bits: float | None = None


@dataclass(frozen=True)
class PlannedPhase:
    """A part of a method's ``run``: its name in the costs, the batches that it runs, and its denoiser calls.

    ``calls_per_step``: of each batch, for every denoiser call that the pipeline itself makes; ``calls_of``: where they
    follow from the number of these in another way. ``on_rounded_weights``: they run a copy of the denoiser that has
    these, and its finished steps are kept. ``learning_prompts``: of calls that are followed by a backward pass.
    ``title``: under which progress is reported, step by step; ``works_of``: where it is reported in another way.
    """

    name: str
    batches: Sequence[PromptBatch] = ()
    calls_per_step: int = 0
    on_rounded_weights: bool = False
    learning_prompts: int = 0
    calls_of: Callable[[int], int] | None = None
    title: str = ""
    works_of: Callable[[int], tuple[PlannedWork, ...]] | None = None

    def calls(self, of_pipeline: int) -> int:
        """Denoiser calls of each batch, where the pipeline itself makes so many."""
        return self.calls_of(of_pipeline) if self.calls_of else self.calls_per_step * of_pipeline

    def works(self, of_pipeline: int) -> tuple[PlannedWork, ...]:
        """What progress will be reported of, where the pipeline itself makes so many calls."""
        if self.works_of:
            return self.works_of(of_pipeline)
        prompts = sum(len(batch.prompts) for batch in self.batches)
        return (PlannedWork(self.title, of_pipeline, prompts * self.calls_per_step),) if self.title else ()


@dataclass(frozen=True)
class Method:
    """``defaults``: the method's recipe for a number of activation bits, which decide its ranges and relaxed bits.

    ``phases``: what ``run`` will do with a job, in order, and what comes before it by the recipe's keys.
    """

    name: str
    defaults: Callable[[int], Recipe]
    run: Callable[[Job], Outcome]
    phases: Callable[[Job], tuple[PlannedPhase, ...]]

    def recipe(self, keys: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
        """The defaults, updated by plain ``keys`` as in a recipe file. Raises ValueError as :meth:`Recipe.updated`."""
        activations = check_activation_bits(keys.get("activations", DEFAULT_ACTIVATION_BITS))
        return self.defaults(activations).updated(keys)
