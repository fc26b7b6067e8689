"""Bits where they matter: of weights by layer, of activations by layer and step, under the recipe's averages.

The sensitivities are measured once, before anything is quantized, and serve both. Layers next to the latents keep
their own bits and do not count. A weight's bits count by the number of weights, with those of a branch beside it, a
layer's activation bits by its multiplications: what they cost.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

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
from bitbrush.methods.low_rank import weight_bits_of_branches
from bitbrush.methods.method import AllocatedBits, Job, PlannedPhase
from bitbrush.methods.recipe import WeightAllocation
from bitbrush.network.held import in_memory, weight_shape
from bitbrush.numerics.allocation import allocate
from bitbrush.timeline.journal import Journal
from bitbrush.timeline.plan import MeasuredRelaxation

SENSITIVITY = "sensitivity"


@dataclass(frozen=True)
class _Wanted:
    """The averages for which bits are to be measured; None where the recipe gives them, as an average of 8 does."""

    weights: float | None
    activations: float | None

    @classmethod
    def by(cls, job: Job) -> "_Wanted":
        recipe = job.recipe
        measured = recipe.weight_allocation is WeightAllocation.MEASURED and recipe.weights < WEIGHT_CHOICES[-1]
        relax = recipe.relax
        return cls(
            float(recipe.weights) if measured and job.rounded is None else None,
            relax.average if isinstance(relax, MeasuredRelaxation) else None,
        )

    @property
    def nothing(self) -> bool:
        return self.weights is None and self.activations is None


def sensitivity_phases(job: Job) -> tuple[PlannedPhase, ...]:
    """What :func:`with_measured_bits` will do."""
    if _Wanted.by(job).nothing:
        return ()
    batch = measured_batch(job.batches)
    works = partial(sensitivity_works, prompts=len(batch.prompts), layers=len(_counted_layers(job)))
    return (PlannedPhase(SENSITIVITY, (batch,), calls_of=sensitivity_calls, works_of=works),)


def with_measured_bits(job: Job) -> Job:
    """The job with all bits settled; the same where the recipe wants none measured."""
    wanted = _Wanted.by(job)
    if wanted.nothing:
        return job
    sensitivities = _measured_or_kept(job)
    bits = job.allocated or AllocatedBits()
    if wanted.weights is not None:
        bits = replace(bits, weights=_weight_bits(job, sensitivities, wanted.weights))
    if wanted.activations is not None:
        by_layer, average = _activation_bits(sensitivities, wanted.activations)
        bits = replace(bits, activations=by_layer, average=average)
    return replace(job, allocated=bits)


def _measured_or_kept(job: Job) -> Sensitivities:
    """Where processes share the job the first measures and tells the others: all must settle for the same bits."""
    found = job.journal.read(SENSITIVITY)
    if found is None:
        found = job.ranks.from_first(lambda: _measured(job))
        assert found is not None
        job.journal.write(SENSITIVITY, found)
    timesteps = tuple(found["timesteps"].tolist())
    return Sensitivities(timesteps, _counted_layers(job), found["inputs"], found["weights"], found["products"])


def _counted_layers(job: Job) -> tuple[str, ...]:
    return tuple(spec.name for spec in job.calibration.layers if not spec.edge)


def _measured(job: Job) -> dict[str, Tensor]:
    pipe, recipe = copy.copy(job.pipe), job.recipe
    setattr(pipe, job.family.component, in_memory(job.denoiser))  # gradients are of parameters
    measurement = Measurement(
        pipe=pipe,
        component=job.family.component,
        plan=recipe.plan,
        layers=_counted_layers(job),
        bits=recipe.activations,
        activation_range=recipe.activation_range,
        weight_range=recipe.weight_range,
    )
    with job.costs.phase(SENSITIVITY) as calls:
        pieces = Journal(job.journal.folder)  # of this process: the others wait for what it finds
        found = measure_sensitivities(measurement, measured_batch(job.batches), job.progress, calls, pieces)
    tensors = {"inputs": found.inputs, "weights": found.weights, "products": found.products}
    return {"timesteps": torch.tensor(found.timesteps, dtype=torch.float64), **tensors}


def _weight_bits(job: Job, sensitivities: Sensitivities, average: float) -> dict[str, int]:
    """By layer; with what branches take they are ``average`` bits for each weight of the layers."""
    layers = (job.denoiser.get_submodule(name) for name in sensitivities.layers)
    sizes = torch.tensor([float(math.prod(weight_shape(layer))) for layer in layers])
    left = average - weight_bits_of_branches(job) / float(sizes.sum())
    if left < WEIGHT_CHOICES[0]:
        raise ValueError(
            f"weights is {average:g} bits on average, of which branches of rank {job.recipe.low_rank} leave "
            f"{left:.2f} for the layers, that need {WEIGHT_CHOICES[0]}; raise weights, lower low_rank or set it to none"
        )
    chosen = allocate(sensitivities.weights, WEIGHT_CHOICES, sizes, left)
    return dict(zip(sensitivities.layers, chosen.bits.tolist(), strict=True))


def _activation_bits(sensitivities: Sensitivities, average: float) -> tuple[Mapping[str, Mapping[float, int]], float]:
    """By layer and timestep, and their average.

    A layer keeps its bits throughout a segment of the steps, so that less hangs on the noise of a single call's probes.
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
    """Calls of the same timestep, which have one grid, are all in the segment of the first of them."""
    segment_of = {call: index for index, calls in enumerate(segments(len(timesteps))) for call in calls}
    parts: dict[int, list[int]] = {}
    for call, timestep in enumerate(timesteps):
        parts.setdefault(segment_of[timesteps.index(timestep)], []).append(call)
    return list(parts.values())
