"""Learned rounding of a whole denoiser, block after block, in one walk through both networks.

Each block's layers are first rounded one by one with error compensation; a block of several layers is then learned as
a whole. What follows sees the inputs that the rounded network really produces.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bitbrush.network.family import Family
from bitbrush.network.held import hold_rounded, twin
from bitbrush.network.layers import LayerSpec
from bitbrush.numerics.weights import WeightRange
from bitbrush.rounding.blocks import (
    BlockCall,
    BlockInputs,
    Rows,
    Walk,
    as_rows,
    called,
    next_stop,
    reconstruction_blocks,
    walks,
)
from bitbrush.rounding.compensation import Compensated, round_with_compensation
from bitbrush.rounding.kept_blocks import block_from_tensors, block_tensors
from bitbrush.rounding.nearest import RoundedLayer
from bitbrush.rounding.reconstruction import reconstruct
from bitbrush.rounding.shards import WHOLE, Place, Shard, Shards
from bitbrush.timeline.journal import NO_JOURNAL, Journal
from bitbrush.timeline.progress import Progress
from bitbrush.timeline.ranks import Ranks
from bitbrush.timeline.spool import IN_MEMORY, Spool
from bitbrush.timeline.trajectory import DenoiserCall


@dataclass(frozen=True)
class _Calls:
    """Calls of one block or layer in both networks, and the place of each among those of all processes."""

    full: Sequence[BlockCall]
    quantized: Sequence[BlockCall]
    places: Sequence[Place]

    def at(self, indices: Sequence[int]) -> list[Place]:
        return [self.places[index] for index in indices]


def _waiting(walking: Sequence[Walk], indices: Sequence[int]) -> list[BlockCall]:
    return [called(walking[index]) for index in indices]


class _Learner:
    """``full`` keeps its weights; ``quantized`` shares them until it takes on the rounded ones, as integers.

    Calls of a block come with their places among those of all ``ranks``; this process may have none.
    """

    def __init__(
        self, full: nn.Module, specs: Sequence[LayerSpec], estimator: WeightRange, *, spool: Spool, ranks: Ranks
    ) -> None:
        self.full = full
        self.quantized = twin(full)
        self.spool = spool
        self.rounded: dict[str, RoundedLayer] = {}
        self._specs = {spec.name: spec for spec in specs}
        self._estimator = estimator
        self._ranks = ranks
        self.generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def learn(self, name: str, layers: Sequence[str], calls: "_Calls") -> list[Any]:
        """Rounds the layers of the block ``name``; returns its full-precision outputs."""
        compensated, outputs = self._compensate(layers, calls)
        weights = {layer: start.weight for layer, start in compensated.items()}
        if len(layers) > 1:
            inner = {layer.removeprefix(name + "."): compensated[layer] for layer in layers}
            block = self.quantized.get_submodule(name)
            targets = Rows(tuple(self.spool.put_away(as_rows(output)) for output in outputs)) if outputs else None
            inputs = BlockInputs.of(calls.quantized) if calls.quantized else None
            shard = Shard.of(calls.places, [call.rows for call in calls.quantized], self._ranks)
            learned = reconstruct(block, inner, inputs, targets, self.generator, shard)
            weights = {f"{name}.{layer}": weight for layer, weight in learned.items()}
        for layer, weight in weights.items():
            self._set(layer, RoundedLayer(weight, compensated[layer].bias))
        return outputs

    def _compensate(self, layers: Sequence[str], calls: "_Calls") -> tuple[dict[str, Compensated], list[Any]]:
        compensated: dict[str, Compensated] = {}
        with (
            walks(self.full, layers, calls.full, self.spool) as targets,
            walks(self.quantized, layers, calls.quantized, self.spool) as inputs,
        ):
            while stop := next_stop(targets, layers, self._ranks):
                name, waiting = stop
                if name not in compensated:
                    own = _Calls(_waiting(targets, waiting), _waiting(inputs, waiting), calls.at(waiting))
                    compensated[name] = self._compensate_one(name, own)
                for network, walking in ((self.full, targets), (self.quantized, inputs)):
                    for index in waiting:
                        walking[index].answer(called(walking[index]).run(network))
            if missing := [layer for layer in layers if layer not in compensated]:
                raise ValueError(f"layer {missing[0]} is never called by the denoiser; exclude it by pattern")
            return compensated, [walk.result for walk in targets]

    def _compensate_one(self, name: str, calls: "_Calls") -> Compensated:
        """By the inputs of its first call; a layer called again in the same denoiser call goes on with what it got."""
        layer = self.full.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        target_x, x = (
            Rows(tuple(call.args[0] for call in own)) if own else None for own in (calls.full, calls.quantized)
        )
        shard = Shard.of(calls.places, [len(call.args[0]) for call in calls.quantized], self._ranks)
        spec = self._specs[name]
        start = round_with_compensation(
            layer,
            spec.weight_bits,
            self._estimator,
            target_x,
            x,
            self.generator,
            shard,
            groups=spec.groups,
            spool=self.spool,
        )
        self._set(name, RoundedLayer(start.weight, start.bias))
        return start

    def recall(self, layers: Mapping[str, RoundedLayer]) -> None:
        """Takes on what was learned before."""
        for name, layer in layers.items():
            self._set(name, layer)

    def _set(self, name: str, rounded: RoundedLayer) -> None:
        self.rounded[name] = rounded
        hold_rounded(self.quantized.get_submodule(name), rounded.weight, rounded.bias)


def _learn_or_recall(learner: _Learner, name: str, layers: Sequence[str], calls: _Calls, journal: Journal) -> list[Any]:
    """The full-precision outputs of the block ``name``; its layers are rounded, here or by earlier work."""
    piece = f"block-{name}"
    kept = journal.read(piece)
    if kept is not None:
        learner.recall(block_from_tensors(layers, kept, learner.generator))
        return [learner.spool.put_away(call.run(learner.full)) for call in calls.full]
    outputs = learner.learn(name, layers, calls)
    journal.write(piece, block_tensors({layer: learner.rounded[layer] for layer in layers}, learner.generator))
    return outputs


@torch.no_grad()
def learn_rounding(
    denoiser: nn.Module,
    family: Family,
    specs: Sequence[LayerSpec],
    estimator: WeightRange,
    samples: Sequence[DenoiserCall],
    progress: Progress,
    journal: Journal = NO_JOURNAL,
    *,
    spool: Spool = IN_MEMORY,
    shards: Shards = WHOLE,
) -> dict[str, RoundedLayer]:
    """Integers and biases by layer name; ``denoiser`` stays as it is. ``samples``: calls of the full-precision model.

    ``shards``: which of all processes' samples these are. All learn together, and each has the same result: that of a
    single process, apart from the order in which sums over samples are added up.

    Every sample runs through either network once, for all blocks together. What a denoiser call uses several times is
    learned on its first use. Blocks that ``journal`` holds are taken from it, the others go into it; the result is the
    same. What the samples hold meanwhile is put away by ``spool``. Raises ValueError if a layer is never called.
    """
    blocks = reconstruction_blocks(denoiser, family, [spec.name for spec in specs])
    learner = _Learner(denoiser, specs, estimator, spool=spool, ranks=shards.ranks)
    names = list(blocks)
    with (
        walks(denoiser, names, samples, spool) as full,
        walks(learner.quantized, names, samples, spool) as quantized,
        progress("learning rounding", len(names)) as advance,
    ):
        while stop := next_stop(full, names, shards.ranks):
            name, waiting = stop
            calls = _Calls(_waiting(full, waiting), _waiting(quantized, waiting), shards.of(waiting))
            if name in blocks:
                outputs = _learn_or_recall(learner, name, blocks.pop(name), calls, journal)
                advance()
            else:
                outputs = [spool.put_away(call.run(denoiser)) for call in calls.full]
            for index, output, call in zip(waiting, outputs, calls.quantized, strict=True):
                full[index].answer(output)
                quantized[index].answer(call.run(learner.quantized))
    if blocks:
        raise ValueError(f"block {next(iter(blocks))} is never called by the denoiser; exclude it by pattern")
    return learner.rounded
