"""What a method is: a name, default keys, and the function that carries it out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from bitbrush.calibration.ranges import ActivationBits, Calibration
from bitbrush.methods.recipe import Recipe
from bitbrush.network.family import Family
from bitbrush.network.layers import LayerSpec, QuantizedLayer, layer_specs
from bitbrush.timeline.cost import CostLedger
from bitbrush.timeline.progress import Progress
from bitbrush.timeline.trajectory import PromptBatch


@dataclass(frozen=True)
class Job:
    """One quantization: the pipeline (left as it is), the recipe, calibration prompts, and where to report."""

    pipe: Any
    family: Family
    recipe: Recipe
    batches: tuple[PromptBatch, ...]
    progress: Progress
    costs: CostLedger

    @property
    def denoiser(self) -> nn.Module:
        denoiser: nn.Module = getattr(self.pipe, self.family.component)
        return denoiser

    @property
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
class Method:
    """``defaults``: recipe keys that differ from :class:`Recipe`'s own defaults when this method is chosen."""

    name: str
    defaults: Recipe
    run: Callable[[Job], Outcome]
