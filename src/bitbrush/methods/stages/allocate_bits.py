"""Bits where they matter: of weights by layer, of activations by layer and step, under the recipe's averages.

The sensitivities are measured once, before anything is quantized, and serve both. High-precision layers keep their own
bits and do not count. A weight's bits count by the number of weights, with those of a branch beside it; a layer's
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
    """The averages for which bits are measured; None where the recipe gives the bits, as an average of 8 does."""

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
    """Measures the sensitivities and settles all bits."""
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
    """Measures, or reads them from the journal; the first process measures, so that all settle for the same bits."""
    found = state.session.journal.read(NAME)
    if found is None:
        found = state.session.ranks.from_first(lambda: _measured(state))
        assert found is not None
        state.session.journal.write(NAME, found)
    timesteps = tuple(found["timesteps"].tolist())
    return Sensitivities(timesteps, _counted_layers(state), found["inputs"], found["weights"], found["products"])


def _counted_layers(state: QuantizationState) -> tuple[str, ...]:
    return tuple(spec.name for spec in state.calibration.layers if not spec.high_precision)


def _measured(state: QuantizationState) -> dict[str, Tensor]:
    pipe, recipe = copy.copy(state.pipe), state.recipe
    setattr(pipe, state.family.component, materialized(state.denoiser))  # gradients are of parameters
    measurement = Measurement(
        pipe=pipe,
        component=state.family.component,
        plan=recipe.plan,
        layers=_counted_layers(state),
        bits=recipe.activations,
        activation_range=recipe.activation_range,
        weight_range=recipe.weight_range,
    )
    own = replace(
        state.session, journal=replace(state.session.journal, ranks=ALONE)
    )  # the others wait for what it finds
    found = measure_sensitivities(measurement, measured_batch(state.batches), own)
    tensors = {"inputs": found.inputs, "weights": found.weights, "products": found.products}
    return {"timesteps": torch.tensor(found.timesteps, dtype=torch.float64), **tensors}


def _weight_bits(state: QuantizationState, sensitivities: Sensitivities, average: float) -> dict[str, int]:
    """Returns bits by layer; with those of branches they are ``average`` bits for each weight of the layers."""
    layers = (state.denoiser.get_submodule(name) for name in sensitivities.layers)
    sizes = torch.tensor([float(math.prod(weight_shape(layer))) for layer in layers])
    left = average - branch_weight_bits(state) / float(sizes.sum())
    if left < WEIGHT_CHOICES[0]:
        raise ValueError(
            f"weights is {average:g} bits on average, of which branches of rank {state.recipe.low_rank} leave "
            f"{left:.2f} for the layers, that need {WEIGHT_CHOICES[0]}; raise weights, lower low_rank or set it to none"
        )
    chosen = allocate(sensitivities.weights, WEIGHT_CHOICES, sizes, left)
    return dict(zip(sensitivities.layers, chosen.bits.tolist(), strict=True))


def _activation_bits(sensitivities: Sensitivities, average: float) -> tuple[Mapping[str, Mapping[float, int]], float]:
    """Returns bits by layer and timestep, and their average.

    A layer keeps its bits throughout a segment of the steps, so that less depends on the noise of a single call's
    probes.
    """
    parts = _calls_by_segment(sensitivities.timesteps)
    errors = torch.stack([sensitivities.inputs[calls].sum(0) for calls in parts])
    sizes = torch.stack([len(calls) * sensitivities.products for calls in parts])
    chosen = allocate(errors.flatten(0, 1), ACTIVATION_CHOICES, sizes.flatten(), average)
    bits = chosen.bits.view(len(parts), -1)
    part_of = {sensitivities.timesteps[call]: part for part, calls in enumerate(parts) for call in calls}
    by_layer = {
        name: {timestep: int(bits[part, index]) for timestep, part in part_of.items()}
        for index, name in enumerate(sensitivities.layers)
    }
    return by_layer, chosen.average


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
