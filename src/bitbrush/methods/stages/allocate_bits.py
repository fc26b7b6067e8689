"""Allocation of weight bits to layers, and of activation bits to layers and steps, under the recipe's averages.

The sensitivities are measured once, before anything is quantized, and serve both. High-precision layers keep their own
bits and do not count. A layer's weight bits count by its number of weights, those of its branch included. Its
activation bits count by its multiplications.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitbrush.calibration.relaxing import MeasuredRelaxation
from bitbrush.calibration.sensitivity import (
    ACTIVATION_CHOICES,
    WEIGHT_CHOICES,
    Measurement,
    Sensitivities,
    measure_sensitivities,
    measured_batch,
    segments,
    sensitivity_calls,
    sensitivity_works,
)
from bitbrush.methods.recipe import WeightAllocation
from bitbrush.methods.stage import Stage, StageCalls
from bitbrush.methods.stages.branches import branch_weight_bits
from bitbrush.methods.state import AllocatedBits, QuantizationState
from bitbrush.network.lazy_weights import materialized, weight_shape
from bitbrush.numerics.allocation import allocate
from bitbrush.session.progress import PlannedWork
from bitbrush.session.ranks import ALONE

NAME = "sensitivity"


@dataclass(frozen=True)
class _Averages:
    """Averages of the measured bits; None if the recipe itself determines the bits, e.g. by an average of 8."""

    weights: float | None
    activations: float | None


def _averages(state: QuantizationState) -> _Averages:
    recipe = state.recipe
    measured = recipe.weight_allocation is WeightAllocation.MEASURED and recipe.weights < WEIGHT_CHOICES[-1]
    return _Averages(
        float(recipe.weights) if measured and state.rounded is None else None,
        recipe.relax.average if isinstance(recipe.relax, MeasuredRelaxation) else None,
    )


def allocate_bits(state: QuantizationState) -> QuantizationState:
    """Measures the sensitivities and allocates bits by them."""
    averages = _averages(state)
    sensitivities = _sensitivities(state)
    bits = state.allocated or AllocatedBits()
    if averages.weights is not None:
        bits = replace(bits, weights=_weight_bits(state, sensitivities, averages.weights))
    if averages.activations is not None:
        by_layer, average = _activation_bits(sensitivities, averages.activations)
        bits = replace(bits, activations=by_layer, average=average)
    return replace(state, allocated=bits)


def _sensitivities(state: QuantizationState) -> Sensitivities:
    """Measures the sensitivities, or reads them from the journal; the first process measures for all processes."""
    tensors = state.session.journal.read(NAME)
    if tensors is None:
        tensors = state.session.ranks.from_first(lambda: _measured(state))
        assert tensors is not None
        state.session.journal.write(NAME, tensors)
    timesteps = tuple(tensors["timesteps"].tolist())
    return Sensitivities(timesteps, _counted_layers(state), tensors["inputs"], tensors["weights"], tensors["products"])


def _counted_layers(state: QuantizationState) -> tuple[str, ...]:
    return tuple(spec.name for spec in state.calibration.layers if not spec.high_precision)


def _measured(state: QuantizationState) -> dict[str, Tensor]:
    pipe, recipe = copy.copy(state.pipe), state.recipe
    setattr(pipe, state.family.component, materialized(state.denoiser))  # only parameters have gradients
    measurement = Measurement(
        pipe=pipe,
        component=state.family.component,
        plan=recipe.plan,
        layers=_counted_layers(state),
        bits=recipe.activations,
        activation_range=recipe.activation_range,
        weight_range=recipe.weight_range,
    )
    # Only this process measures; the others receive its result.
    session = replace(state.session, journal=replace(state.session.journal, ranks=ALONE))
    sensitivities = measure_sensitivities(measurement, measured_batch(state.batches), session)
    tensors = {"inputs": sensitivities.inputs, "weights": sensitivities.weights, "products": sensitivities.products}
    return {"timesteps": torch.tensor(sensitivities.timesteps, dtype=torch.float64), **tensors}


def _weight_bits(state: QuantizationState, sensitivities: Sensitivities, average: float) -> dict[str, int]:
    """Returns weight bits by layer; with the bits of branches they are ``average`` bits per weight."""
    layers = (state.denoiser.get_submodule(name) for name in sensitivities.layers)
    sizes = torch.tensor([float(math.prod(weight_shape(layer))) for layer in layers])
    layer_bits = average - branch_weight_bits(state) / float(sizes.sum())
    if layer_bits < WEIGHT_CHOICES[0]:
        raise ValueError(
            f"weights is {average:g} bits on average; branches of rank {state.recipe.low_rank} leave {layer_bits:.2f} "
            f"of them for the layers, which need {WEIGHT_CHOICES[0]}; raise weights, lower low_rank or set it to none"
        )
    allocation = allocate(sensitivities.weights, WEIGHT_CHOICES, sizes, layer_bits)
    return dict(zip(sensitivities.layers, allocation.bits.tolist(), strict=True))


def _activation_bits(sensitivities: Sensitivities, average: float) -> tuple[Mapping[str, Mapping[float, int]], float]:
    """Returns bits by layer and timestep, and their average.

    A layer has the same bits throughout a segment of the steps, which averages the noise of single calls' probes.
    """
    parts = _calls_by_segment(sensitivities.timesteps)
    errors = torch.stack([sensitivities.inputs[calls].sum(0) for calls in parts])
    sizes = torch.stack([len(calls) * sensitivities.products for calls in parts])
    allocation = allocate(errors.flatten(0, 1), ACTIVATION_CHOICES, sizes.flatten(), average)
    bits = allocation.bits.view(len(parts), -1)
    part_of = {sensitivities.timesteps[call]: part for part, calls in enumerate(parts) for call in calls}
    by_layer = {
        name: {timestep: int(bits[part, index]) for timestep, part in part_of.items()}
        for index, name in enumerate(sensitivities.layers)
    }
    return by_layer, allocation.average


def _calls_by_segment(timesteps: Sequence[float]) -> list[list[int]]:
    """Groups the calls by segment; calls of one timestep share the segment of the first of them."""
    segment_of = {call: index for index, calls in enumerate(segments(len(timesteps))) for call in calls}
    parts: dict[int, list[int]] = {}
    for call, timestep in enumerate(timesteps):
        parts.setdefault(segment_of[timesteps.index(timestep)], []).append(call)
    return list(parts.values())


def _work(state: QuantizationState, of_pipeline: int) -> tuple[PlannedWork, ...]:
    prompts = len(measured_batch(state.batches).prompts)
    return sensitivity_works(of_pipeline, prompts=prompts, layers=len(_counted_layers(state)))


ALLOCATE_BITS = Stage(
    name=NAME,
    summary="Weight bits by layer and activation bits by layer and step follow from measured sensitivities.",
    run=allocate_bits,
    wanted=lambda state: _averages(state) != _Averages(None, None),
    calls=lambda state, of_pipeline: StageCalls((measured_batch(state.batches),), sensitivity_calls(of_pipeline)),
    work=_work,
)
