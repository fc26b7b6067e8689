"""The known first token of texts as a stage: which layers have one, and what it is."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from bitbrush.methods.method import Job, PlannedPhase
from bitbrush.network.first_token import FirstToken, text_inputs
from bitbrush.rounding.nearest import RoundedLayer
from bitbrush.timeline.trajectory import carried, pending

FIRST_TOKEN = "first_token"


def first_token_phases(job: Job) -> tuple[PlannedPhase, ...]:
    """What :func:`with_first_tokens` will do. Raises ValueError for a denoiser without layers that read a text."""
    if _known_of(job.rounded or {}) >= job.first_token_layers:
        return ()
    return (PlannedPhase(FIRST_TOKEN, job.batches[:1], calls_of=lambda _: 1),)


def with_first_tokens(job: Job, rounded: Mapping[str, RoundedLayer]) -> Mapping[str, RoundedLayer]:
    """The layers, those that read the text with what is known of its first token; given ones may have it already."""
    wanted = job.first_token_layers
    if _known_of(rounded) >= wanted:
        return {name: replace(layer, first=layer.first if name in wanted else None) for name, layer in rounded.items()}
    found = job.ranks.from_first(lambda: _found(job))
    assert found is not None
    firsts = {name: FirstToken(found[f"{name}.input"], found[f"{name}.output"]) for name in wanted}
    return {name: replace(layer, first=firsts.get(name)) for name, layer in rounded.items()}


def _known_of(rounded: Mapping[str, RoundedLayer]) -> set[str]:
    return {name for name, layer in rounded.items() if layer.first is not None}


def _found(job: Job) -> dict[str, Tensor]:
    with (
        job.costs.phase(FIRST_TOKEN) as calls,
        carried(job.pipe, job.family.component, job.batches[:1], job.recipe.plan) as trajectories,
    ):
        given = text_inputs(job.denoiser, job.first_token_layers, pending(trajectories)[0])
        calls.add()
    tensors: dict[str, Tensor] = {}
    for name, x in given.items():
        first = FirstToken.of(job.denoiser.get_submodule(name), x)
        tensors |= {f"{name}.input": first.input, f"{name}.output": first.output}
    return tensors
