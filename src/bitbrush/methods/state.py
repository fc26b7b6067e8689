"""State of a quantization between stages."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from bitbrush.calibration.observe import ActivationBits, Calibration, Observations
from bitbrush.calibration.relaxing import Relaxation
from bitbrush.methods.recipe import FirstTokens, Recipe
from bitbrush.network.family import Family
from bitbrush.network.first_token import OUTLYING_RATIO
from bitbrush.network.layers import LayerSpec, layer_specs
from bitbrush.numerics.weights import QuantizedWeight
from bitbrush.rounding.nearest import RoundedLayer
from bitbrush.session.session import Session
from bitbrush.timeline.schedule import Activations
from bitbrush.timeline.shards import own_shards
from bitbrush.timeline.trajectory import DenoiserCall, PromptBatch


@dataclass(frozen=True)
class AllocatedBits:
    """Measured bit allocation; recipe keys determine everything that is not measured.

    Args:
        weights: Weight bits by layer name.
        activations: Activation bits by layer name and timestep, or None.
        average: Average activation bits over all multiplications of the plan, or None.
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    activations: Mapping[str, Mapping[float, int]] | None = None
    average: float | None = None


@dataclass(frozen=True)
class QuantizationState:
    """Inputs of a quantization and the results of its stages so far; stages return a new state and never mutate it.

    Args:
        pipe: Full-precision pipeline with the recipe's scheduler. A stage may replace its denoiser by an equivalent:
            split, branched or smoothed.
        family: Facts about the denoiser's architecture.
        recipe: Keys that determine the result.
        batches: All calibration prompts.
        session: Processes, journal, offload, progress and costs.
        original: Pipeline before any stage.
        factors: Integers of low-rank branches by layer name, unchanged by rounding.
        allocated: Measured bits; None before the measurement.
        samples: Recorded denoiser calls for learned rounding, until the weights are rounded.
        rounded: Rounded weights by layer name, from an earlier quantization or from the rounding stage.
        observations: Observed layer inputs by timestep.
        recorded: Full-precision denoiser calls for learning step sizes.
        activations: Activation parameters by layer name.
        start_token_ratio: Norm of the prompts' start token over that of the other tokens. None before the measurement,
            or if the prompts have no start token.
    """

    pipe: Any
    family: Family
    recipe: Recipe
    batches: tuple[PromptBatch, ...]
    session: Session
    original: Any
    factors: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    allocated: AllocatedBits | None = None
    samples: Sequence[DenoiserCall] = ()
    rounded: Mapping[str, RoundedLayer] | None = None
    observations: Observations = field(default_factory=dict)
    recorded: Sequence[DenoiserCall] = ()
    activations: Mapping[str, Activations] = field(default_factory=dict)
    start_token_ratio: float | None = None

    @property
    def own_batches(self) -> tuple[PromptBatch, ...]:
        """Calibration batches, or parts of batches, of this process."""
        return tuple(piece.batch for piece in own_shards(self.batches, self.session.ranks))

    @property
    def denoiser(self) -> nn.Module:
        """Full-precision denoiser after the stages so far."""
        denoiser: nn.Module = getattr(self.pipe, self.family.component)
        return denoiser

    def with_denoiser(self, denoiser: nn.Module) -> "QuantizationState":
        """Returns a state with a shallow copy of the pipeline that has another denoiser."""
        pipe = copy.copy(self.pipe)
        setattr(pipe, self.family.component, denoiser)
        return replace(self, pipe=pipe)

    @cached_property  # computing the specs reads every weight
    def specs(self) -> tuple[LayerSpec, ...]:
        """Treatment of every Conv2d and Linear of the denoiser."""
        recipe = self.recipe
        specs = layer_specs(
            self.denoiser,
            self.family,
            weight_bits=recipe.weights,
            exclude=recipe.exclude,
            high_precision=recipe.high_precision,
        )
        weights = self.allocated.weights if self.allocated else {}
        return tuple(replace(spec, weight_bits=weights.get(spec.name, spec.weight_bits)) for spec in specs)

    @property
    def calibration(self) -> Calibration:
        """Layers with activation ranges, their bits, and the range estimator."""
        relax, allocated = self.recipe.relax, self.allocated.activations if self.allocated else None
        relaxation = relax if isinstance(relax, Relaxation) else None
        bits = ActivationBits(self.recipe.activations, relaxation, allocated)
        return Calibration(self.specs, bits, self.recipe.activation_range, self.first_token_layers)

    @property
    def _knows_first_token(self) -> bool:
        if self.recipe.first_token is FirstTokens.AUTO:
            return self.start_token_ratio is not None and self.start_token_ratio >= OUTLYING_RATIO
        return self.recipe.first_token is FirstTokens.KNOWN

    @property
    def first_token_layers(self) -> frozenset[str]:
        """Layers that do not quantize the first token of a prompt."""
        if not self._knows_first_token:
            return frozenset()
        return frozenset(self.family.text_layers(self.denoiser)) & {
            spec.name for spec in self.specs if spec.excluded is None
        }
