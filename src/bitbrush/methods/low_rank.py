"""Branches of low rank as a stage: which layers get one, and their integers."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from bitbrush.methods.method import Job
from bitbrush.methods.recipe import Smoothing
from bitbrush.network.held import device_of, twin
from bitbrush.network.low_rank import (
    Factors,
    branch_,
    branch_ranks,
    factor_bits,
    factors,
    rank_of,
    reader_of,
    set_factors,
)
from bitbrush.numerics.weights import QuantizedWeight, WeightGrid

PARTS = ("up", "down")


def with_branches(job: Job) -> Job:
    """The job of a pipeline that computes the same, its layers branched; itself where none are to be, or all are.

    Layers next to the latents, ``fine`` and excluded ones, and those with a known first token stay as they are. Raises
    ValueError if no layer is left, or if channels are to be smoothed as well.
    """
    rank = job.recipe.low_rank
    if rank is None or branch_ranks(job.denoiser):
        return job
    if job.recipe.smoothing is not Smoothing.NONE:
        raise ValueError(
            f"low_rank is {rank} and smoothing {job.recipe.smoothing}: branches are of the weights before anything is "
            "smoothed; set one of the two to none"
        )
    wanted = _ranks(job, rank)
    if not wanted:
        raise ValueError(
            f"low_rank is {rank}, but no layer that is quantized is large enough for a branch; leave it at none"
        )
    denoiser = twin(job.denoiser)
    whole = {name: reader_of(denoiser.get_submodule(name)) for name in wanted}
    branch_(denoiser, wanted)
    found = _found(job, whole, wanted)
    device = device_of(job.denoiser)
    for name, own in found.items():
        set_factors(denoiser.get_submodule(name), whole[name], own.to(device))
    pipe = copy.copy(job.pipe)
    setattr(pipe, job.family.component, denoiser)
    integers = {f"{name}.{part}": getattr(own, part) for name, own in found.items() for part in PARTS}
    return replace(job, pipe=pipe, original=job.original or job.pipe, factors=integers)


def _ranks(job: Job, rank: int) -> dict[str, int]:
    kept = job.first_token_layers
    free = (spec.name for spec in job.calibration.layers if not spec.edge and spec.name not in kept)
    found = {name: rank_of(job.denoiser.get_submodule(name), rank) for name in free}
    return {name: own for name, own in found.items() if own}


def _found(job: Job, whole: Mapping[str, Callable[[], Tensor]], wanted: Mapping[str, int]) -> dict[str, Factors]:
    """By layer. Which machine decomposes decides the last bits: the first does it for all."""
    bits = factor_bits(job.recipe.weights)

    def make() -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        with job.progress("finding branches", len(wanted)) as advance:
            for name, rank in wanted.items():
                own = factors(whole[name](), rank, bits)
                tensors |= _tensors(f"{name}.up", own.up) | _tensors(f"{name}.down", own.down)
                advance()
        return tensors

    tensors = job.ranks.from_first(make)
    assert tensors is not None
    return {name: Factors(*(_weight(f"{name}.{part}", tensors, bits) for part in PARTS)) for name in wanted}


def _tensors(name: str, weight: QuantizedWeight) -> dict[str, Tensor]:
    return {f"{name}.w_q": weight.w_q, f"{name}.scale": weight.grid.scale, f"{name}.zero_point": weight.grid.zero_point}


def _weight(name: str, tensors: Mapping[str, Tensor], bits: int) -> QuantizedWeight:
    grid = WeightGrid(tensors[f"{name}.scale"], tensors[f"{name}.zero_point"], bits)
    return QuantizedWeight(tensors[f"{name}.w_q"], grid)


def weight_bits_of_branches(job: Job) -> int:
    """What all factors' weights take."""
    return sum(math.prod(weight.w_q.shape) * weight.grid.bits for weight in job.factors.values())
