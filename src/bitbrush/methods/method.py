"""What a method is: a name, default keys, and a tuple of stages."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bitbrush.methods.recipe import DEFAULT_ACTIVATION_BITS, Recipe, check_activation_bits
from bitbrush.methods.stage import Stage
from bitbrush.methods.state import QuantizationState
from bitbrush.network.layers import LayerSpec, QuantizedLayer
from bitbrush.timeline.trajectory import planned_timesteps


@dataclass(frozen=True)
class Outcome:
    """What a method yields.

    Args:
        specs: The treatment of every layer.
        layers: The quantized layers.
        planned: The plan's timesteps in order.
        average_activation_bits: The average of measured bits; None where bits follow from the recipe alone.
        start_token_ratio: Norm of the texts' start token over the others', where it was measured.
    """

    specs: tuple[LayerSpec, ...]
    layers: tuple[QuantizedLayer, ...]
    planned: tuple[float, ...]
    average_activation_bits: float | None = None
    start_token_ratio: float | None = None


@dataclass(frozen=True)
class Method:
    """A quantization method.

    Args:
        name: The name that a recipe's ``method`` key uses.
        defaults: The method's recipe for a number of activation bits.
        stages: Everything the method may do, in order; a recipe wants some of them.
        shares_weights: Whether another such method with the same weight keys rounds the same integers.
    """

    name: str
    defaults: Callable[[int], Recipe]
    stages: tuple[Stage, ...]
    shares_weights: bool = True

    def recipe(self, keys: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
        """Returns the defaults, updated by plain ``keys`` as in a recipe file.

        Raises:
            ValueError: An unknown key, or a value that its key does not take.
        """
        activations = check_activation_bits(keys.get("activations", DEFAULT_ACTIVATION_BITS))
        return self.defaults(activations).updated(keys)

    def planned(self, state: QuantizationState) -> tuple[Stage, ...]:
        """Returns the stages that the state's recipe wants, in order.

        Raises:
            ValueError: The recipe asks for what a stage of the method cannot do.
        """
        for stage in self.stages:
            stage.check(state)
        return tuple(stage for stage in self.stages if stage.wanted(state))


def run_stages(stages: tuple[Stage, ...], state: QuantizationState) -> QuantizationState:
    """Runs those of the stages that the recipe wants, one after the other, and records what each costs."""
    for stage in stages:
        if stage.wanted(state):
            with state.session.phase(stage.name) if stage.is_phase else nullcontext():
                state = stage.run(state)
    return state


def outcome(state: QuantizationState) -> Outcome:
    """Returns what the stages have yielded."""
    assert state.rounded is not None
    layers = tuple(
        QuantizedLayer(name, layer.weight, layer.bias, state.activations[name], layer.first)
        for name, layer in state.rounded.items()
    )
    planned = planned_timesteps(state.pipe, state.family.component, state.recipe.plan, state.batches[0])
    average = state.allocated.average if state.allocated else None
    return Outcome(state.specs, layers, planned, average, state.start_token_ratio)
