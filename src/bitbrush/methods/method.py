"""Quantization methods: a name, default keys, and a tuple of stages."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bitbrush.methods.product_bits import ProductBits, average_product_bits
from bitbrush.methods.recipe import DEFAULT_ACTIVATION_BITS, Recipe, check_activation_bits
from bitbrush.methods.stage import Stage
from bitbrush.methods.state import QuantizationState
from bitbrush.network.layers import LayerSpec, QuantizedLayer
from bitbrush.timeline.trajectory import planned_timesteps


@dataclass(frozen=True)
class Outcome:
    """Result of a method's stages.

    Args:
        specs: Treatment of every layer.
        layers: Quantized layers.
        planned: Timesteps of the plan, in order.
        average_activation_bits: Average of measured bits; None if the recipe alone determines the bits.
        start_token_ratio: Norm of the prompts' start token over that of the other tokens; None if not measured.
        product_bits: Average bits over all multiplications of the quantized layers, branches and layers next to the
            latents included; None if not counted.
    """

    specs: tuple[LayerSpec, ...]
    layers: tuple[QuantizedLayer, ...]
    planned: tuple[float, ...]
    average_activation_bits: float | None = None
    start_token_ratio: float | None = None
    product_bits: ProductBits | None = None


@dataclass(frozen=True)
class Method:
    """Quantization method.

    Args:
        name: Value of a recipe's ``method`` key.
        defaults: Function from activation bits to the default recipe.
        stages: All stages of the method, in order; a recipe selects some of them.
        shares_weights: Whether methods with this property and equal weight keys round to the same integers.
    """

    name: str
    defaults: Callable[[int], Recipe]
    stages: tuple[Stage, ...]
    shares_weights: bool = True

    def recipe(self, keys: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
        """Returns the default recipe, updated by plain ``keys`` as in a recipe file.

        Raises:
            ValueError: A key is unknown, or its value is invalid.
        """
        activations = check_activation_bits(keys.get("activations", DEFAULT_ACTIVATION_BITS))
        return self.defaults(activations).updated(keys)

    def planned(self, state: QuantizationState) -> tuple[Stage, ...]:
        """Returns the stages that the state's recipe selects, in order.

        Raises:
            ValueError: The recipe asks for something that a stage of the method cannot do.
        """
        for stage in self.stages:
            stage.check(state)
        return tuple(stage for stage in self.stages if stage.wanted(state))


def run_stages(stages: tuple[Stage, ...], state: QuantizationState) -> QuantizationState:
    """Runs the stages that the recipe selects, in order, and records the cost of each."""
    for stage in stages:
        if stage.wanted(state):
            with state.session.phase(stage.name) if stage.is_phase else nullcontext():
                state = stage.run(state)
    return state


def outcome(state: QuantizationState) -> Outcome:
    """Returns the result of the stages that have run."""
    assert state.rounded is not None
    layers = tuple(
        QuantizedLayer(name, layer.weight, layer.bias, state.activations[name], layer.first)
        for name, layer in state.rounded.items()
    )
    planned = planned_timesteps(state.pipe, state.family.component, state.recipe.plan, state.batches[0])
    average = state.allocated.average if state.allocated else None
    bits = average_product_bits(state, layers)
    return Outcome(state.specs, layers, planned, average, state.start_token_ratio, bits)
