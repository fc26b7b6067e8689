"""Learned rounding of a whole denoiser, block after block, in one walk through both networks.

Each block's layers are first rounded one by one with error compensation; a block of several layers is then learned as
a whole. What follows sees the inputs that the rounded network really produces.
"""

from collections.abc import Mapping, Sequence
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
from bitbrush.timeline.journal import NO_JOURNAL, Journal
from bitbrush.timeline.progress import Progress
from bitbrush.timeline.spool import IN_MEMORY, Spool
from bitbrush.timeline.trajectory import DenoiserCall


class _Learner:
    """``full`` keeps its weights; ``quantized`` shares them until it takes on the rounded ones, as integers."""

    def __init__(self, full: nn.Module, specs: Sequence[LayerSpec], estimator: WeightRange, spool: Spool) -> None:
        self.full = full
        self.quantized = twin(full)
        self.spool = spool
        self.rounded: dict[str, RoundedLayer] = {}
        self._bits = {spec.name: spec.weight_bits for spec in specs}
        self._estimator = estimator
        self.generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def learn(self, layers: Sequence[str], full: Sequence[BlockCall], quantized: Sequence[BlockCall]) -> list[Any]:
        """Rounds the layers of the block called; returns the full-precision outputs of ``full``."""
        name = full[0].name
        compensated, outputs = self._compensate(layers, full, quantized)
        weights = {layer: start.weight for layer, start in compensated.items()}
        if len(layers) > 1:
            inner = {layer.removeprefix(name + "."): compensated[layer] for layer in layers}
            block = self.quantized.get_submodule(name)
            targets = Rows(tuple(self.spool.put_away(as_rows(output)) for output in outputs))
            learned = reconstruct(block, inner, BlockInputs.of(quantized), targets, self.generator)
            weights = {f"{name}.{layer}": weight for layer, weight in learned.items()}
        for layer, weight in weights.items():
            self._set(layer, RoundedLayer(weight, compensated[layer].bias))
        return outputs

    def _compensate(
        self, layers: Sequence[str], full: Sequence[BlockCall], quantized: Sequence[BlockCall]
    ) -> tuple[dict[str, Compensated], list[Any]]:
        compensated: dict[str, Compensated] = {}
        with (
            walks(self.full, layers, full, self.spool) as targets,
            walks(self.quantized, layers, quantized, self.spool) as inputs,
        ):
            while stop := next_stop(targets, layers):
                name, waiting = stop
                if name not in compensated:
                    compensated[name] = self._compensate_one(name, targets, inputs, waiting)
                for network, walking in ((self.full, targets), (self.quantized, inputs)):
                    for index in waiting:
                        walking[index].answer(called(walking[index]).run(network))
            if missing := [layer for layer in layers if layer not in compensated]:
                raise ValueError(f"layer {missing[0]} is never called by the denoiser; exclude it by pattern")
            return compensated, [walk.result for walk in targets]

    def _compensate_one(
        self, name: str, targets: Sequence[Walk], inputs: Sequence[Walk], waiting: Sequence[int]
    ) -> Compensated:
        """By the inputs of its first call; a layer called again in the same denoiser call goes on with what it got."""
        layer = self.full.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        target_x, x = (
            Rows(tuple(called(walking[index]).args[0] for index in waiting)) for walking in (targets, inputs)
        )
        start = round_with_compensation(layer, self._bits[name], self._estimator, target_x, x, self.generator)
        self._set(name, RoundedLayer(start.weight, start.bias))
        return start

    def recall(self, layers: Mapping[str, RoundedLayer]) -> None:
        """Takes on what was learned before."""
        for name, layer in layers.items():
            self._set(name, layer)

    def _set(self, name: str, rounded: RoundedLayer) -> None:
        self.rounded[name] = rounded
        hold_rounded(self.quantized.get_submodule(name), rounded.weight, rounded.bias)


def _learn_or_recall(
    learner: _Learner,
    layers: Sequence[str],
    full: Sequence[BlockCall],
    quantized: Sequence[BlockCall],
    journal: Journal,
) -> list[Any]:
    """The full-precision outputs of the block called; its layers are rounded, here or by earlier work."""
    piece = f"block-{full[0].name}"
    kept = journal.read(piece)
    if kept is not None:
        learner.recall(block_from_tensors(layers, kept, learner.generator))
        return [learner.spool.put_away(call.run(learner.full)) for call in full]
    outputs = learner.learn(layers, full, quantized)
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
    spool: Spool = IN_MEMORY,
) -> dict[str, RoundedLayer]:
    """Integers and biases by layer name; ``denoiser`` stays as it is. ``samples``: calls of the full-precision model.

    Every sample runs through either network once, for all blocks together. What a denoiser call uses several times is
    learned on its first use. Blocks that ``journal`` holds are taken from it, the others go into it; the result is the
    same. What the samples hold meanwhile is put away by ``spool``. Raises ValueError if a layer is never called.
    """
    blocks = reconstruction_blocks(denoiser, family, [spec.name for spec in specs])
    learner = _Learner(denoiser, specs, estimator, spool)
    names = list(blocks)
    with (
        walks(denoiser, names, samples, spool) as full,
        walks(learner.quantized, names, samples, spool) as quantized,
        progress("learning rounding", len(names)) as advance,
    ):
        while stop := next_stop(full, names):
            name, waiting = stop
            calls, inputs = ([called(walking[index]) for index in waiting] for walking in (full, quantized))
            if name in blocks:
                outputs = _learn_or_recall(learner, blocks.pop(name), calls, inputs, journal)
                advance()
            else:
                outputs = [spool.put_away(call.run(denoiser)) for call in calls]
            for index, output, call in zip(waiting, outputs, inputs, strict=True):
                full[index].answer(output)
                quantized[index].answer(call.run(learner.quantized))
    if blocks:
        raise ValueError(f"block {next(iter(blocks))} is never called by the denoiser; exclude it by pattern")
    return learner.rounded
