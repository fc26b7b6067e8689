"""Learned rounding of a whole denoiser, block by block, in one sequential forward of both networks.

Each block's layers are first rounded one by one with error compensation; a block of several layers is then learned as a
whole. Later blocks receive the actual inputs from the rounded network.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.network.family import Family
from bitbrush.network.layers import LayerSpec
from bitbrush.network.lazy_weights import device_of, set_quantized_weight, shallow_copy
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import QuantizedWeight
from bitbrush.rounding import adaround as published
from bitbrush.rounding import reconstruction
from bitbrush.rounding.adaround import adaround, round_alone
from bitbrush.rounding.blocks import (
    BlockCall,
    BlockInputs,
    BlockRunner,
    Rows,
    as_rows,
    block_runners,
    called,
    next_block,
    reconstruction_blocks,
)
from bitbrush.rounding.compensation import Compensated, round_with_compensation
from bitbrush.rounding.kept_blocks import block_from_tensors, block_tensors
from bitbrush.rounding.nearest import RoundedLayer
from bitbrush.rounding.reconstruction import reconstruct
from bitbrush.rounding.shards import WHOLE, SampleShard, Shard, Shards
from bitbrush.session.allocator import trim
from bitbrush.session.offload import CPU
from bitbrush.session.progress import PlannedWork
from bitbrush.session.ranks import Ranks
from bitbrush.session.session import Session
from bitbrush.timeline.trajectory import DenoiserCall


@dataclass(frozen=True)
class Procedure:
    """Rounding algorithm: ``start`` for every single layer, then ``reconstruct`` for blocks of enough layers.

    Args:
        start: Function that rounds one layer.
        reconstruct: Function that learns the rounding of a block.
        least_layers: Smallest number of layers of a reconstructed block.
        learned_rows: Rows per block that run through a forward and a backward pass.
    """

    start: Callable[..., Compensated]
    reconstruct: Callable[..., dict[str, QuantizedWeight]]
    least_layers: int
    learned_rows: int = 0


COMPENSATED = Procedure(round_with_compensation, reconstruct, 2, reconstruction.ITERATIONS * reconstruction.BATCH_ROWS)
PUBLISHED = Procedure(round_alone, adaround, 1, published.ITERATIONS * published.BATCH_ROWS)
"""BRECQ with AdaRound, as PCR's authors use it."""
ROUNDING_TITLE = "learning rounding"
"""Title of progress reports."""
SAMPLE_PASSES, BACKWARD, GUIDED_ROWS = 3, 3, 2
"""Passes of each sample, cost of a forward and backward pass in passes, and rows of a prompt with guidance."""


def learning_work(
    denoiser: nn.Module, family: Family, layers: Sequence[str], samples: int, procedure: Procedure
) -> PlannedWork:
    """Returns the work of :func:`learn_rounding` in blocks; ``samples`` counts denoiser calls of one prompt."""
    blocks = len(reconstruction_blocks(denoiser, family, layers))
    calls = SAMPLE_PASSES * samples + BACKWARD * procedure.learned_rows / GUIDED_ROWS
    return PlannedWork(ROUNDING_TITLE, blocks, calls / blocks)


@dataclass(frozen=True)
class _Calls:
    """Calls of one block or layer in both networks, with the shard of each among the calls of all processes.

    ``samples`` are the samples in the batch of each denoiser call.
    """

    full: Sequence[BlockCall]
    quantized: Sequence[BlockCall]
    places: Sequence[SampleShard]
    samples: Sequence[int] = ()


def _calls_at(runners: Sequence[BlockRunner], indices: Sequence[int]) -> list[BlockCall]:
    return [called(runners[index]) for index in indices]


class _Learner:
    """Full-precision network ``full`` and its shallow copy ``quantized``, which receives the rounded integer weights.

    Calls of a block come with their shards among those of all processes; this process may have none.
    """

    def __init__(
        self,
        full: nn.Module,
        specs: Sequence[LayerSpec],
        estimator: WeightRange,
        session: Session,
        procedure: Procedure,
    ) -> None:
        self.full = full
        self.quantized = shallow_copy(full)
        self._device = device_of(full)
        self._session = session
        self.rounded: dict[str, RoundedLayer] = {}
        self._specs = {spec.name: spec for spec in specs}
        self._estimator = estimator
        self._procedure = procedure
        self.generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def learn(self, name: str, layers: Sequence[str], calls: "_Calls") -> list[Any]:
        """Rounds the layers of the block ``name``; returns its full-precision outputs."""
        compensated, outputs = self._compensate(layers, calls)
        weights = {layer: start.weight for layer, start in compensated.items()}
        if len(layers) >= self._procedure.least_layers and self._is_by_sample(name, layers, calls):
            inner = {layer.removeprefix(name).removeprefix("."): compensated[layer] for layer in layers}
            block = self.quantized.get_submodule(name)
            parts = tuple(self._session.offload.put(as_rows(output)) for output in outputs)
            targets = Rows(parts, self._device) if outputs else None
            inputs = BlockInputs.of(calls.quantized, self._device) if calls.quantized else None
            shard = Shard.of(calls.places, [call.rows for call in calls.quantized], self._session.ranks)
            learned = self._procedure.reconstruct(block, inner, inputs, targets, self.generator, shard)
            weights = {f"{name}.{layer}".removesuffix("."): weight for layer, weight in learned.items()}
        for layer, weight in weights.items():
            self._set(layer, RoundedLayer(weight, compensated[layer].bias))
        return outputs

    def _is_by_sample(self, name: str, layers: Sequence[str], calls: "_Calls") -> bool:
        """Returns whether a block's inputs have a row for each sample; ERNIE-Image's have one for each token."""
        if list(layers) == [name]:
            return True  # a layer computes each row by itself, whatever it is
        by_sample = all(call.rows == count for call, count in zip(calls.quantized, calls.samples, strict=True))
        return bool(self._session.ranks.least(torch.tensor(int(by_sample))))

    def _compensate(self, layers: Sequence[str], calls: "_Calls") -> tuple[dict[str, Compensated], list[Any]]:
        compensated: dict[str, Compensated] = {}
        with (
            block_runners(self.full, layers, calls.full, self._session.offload) as targets,
            block_runners(self.quantized, layers, calls.quantized, self._session.offload) as inputs,
        ):
            while stop := next_block(targets, layers, self._session.ranks):
                name, indices = stop
                if name not in compensated:
                    layer_calls = _Calls(
                        _calls_at(targets, indices),
                        _calls_at(inputs, indices),
                        [calls.places[index] for index in indices],
                    )
                    compensated[name] = self._compensate_one(name, layer_calls)
                for index in indices:
                    targets[index].answer(called(targets[index]).run(self.full))
                for index in indices:
                    inputs[index].answer(called(inputs[index]).run(self.quantized))
            if missing := [layer for layer in layers if layer not in compensated]:
                raise ValueError(f"layer {missing[0]} is never called by the denoiser; exclude it by pattern")
            return compensated, [runner.result for runner in targets]

    def _compensate_one(self, name: str, calls: "_Calls") -> Compensated:
        """Rounds a layer by the inputs of its first call; later calls in the same denoiser call reuse the result."""
        layer = self.full.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        targets, inputs = ([call.args[0] for call in part] for part in (calls.full, calls.quantized))
        if _differ_in_length(inputs, self._session.ranks):
            targets, inputs = ([x.flatten(0, -2) for x in part] for part in (targets, inputs))
        if any(a.shape != b.shape for a, b in zip(targets, inputs, strict=True)):
            inputs = targets  # experts get other tokens in the quantized network, so there is no drift to correct
        target_x, x = (Rows(tuple(part), self._device) if part else None for part in (targets, inputs))
        shard = Shard.of(calls.places, list(map(len, inputs)), self._session.ranks)
        if not shard.rows:
            raise ValueError(f"layer {name} is called without any input; exclude it by pattern")
        spec = self._specs[name]
        start = self._procedure.start(
            layer,
            spec.weight_bits,
            self._estimator,
            target_x,
            x,
            self.generator,
            shard,
            offload=self._session.offload,
        )
        self._set(name, RoundedLayer(start.weight, start.bias))
        trim()
        return start

    def recall(self, layers: Mapping[str, RoundedLayer]) -> None:
        """Installs layers that were learned before an interruption."""
        for name, layer in layers.items():
            self._set(name, layer)

    def _set(self, name: str, rounded: RoundedLayer) -> None:
        self.rounded[name] = rounded.to(CPU)
        here = rounded.to(self._device)
        set_quantized_weight(self.quantized.get_submodule(name), here.weight, here.bias)


def _differ_in_length(inputs: Sequence[Tensor], ranks: Ranks) -> bool:
    """Returns whether the layer's tokens differ in number between calls of any process: texts of different lengths."""
    tokens = [math.prod(x.shape[1:-1]) for x in inputs]
    most, least = torch.tensor(max(tokens, default=0)), torch.tensor(min(tokens, default=sys.maxsize))
    return int(ranks.most(most)) > int(ranks.least(least))


def _learn_or_recall(learner: _Learner, name: str, layers: Sequence[str], calls: _Calls, session: Session) -> list[Any]:
    """Rounds the layers of the block ``name``, or reads them from the journal; returns its full-precision outputs."""
    piece = _piece(name)
    tensors = session.journal.read(piece)
    if tensors is not None:
        learner.recall(block_from_tensors(layers, tensors, learner.generator))
        return [session.offload.put(call.run(learner.full)) for call in calls.full]
    outputs = learner.learn(name, layers, calls)
    session.journal.write(piece, block_tensors({layer: learner.rounded[layer] for layer in layers}, learner.generator))
    return outputs


def _piece(block: str) -> str:
    return f"block-{block}"


@torch.no_grad()
def learn_rounding(
    denoiser: nn.Module,
    family: Family,
    specs: Sequence[LayerSpec],
    estimator: WeightRange,
    samples: Sequence[DenoiserCall],
    session: Session,
    *,
    shards: Shards = WHOLE,
    procedure: Procedure = COMPENSATED,
) -> dict[str, RoundedLayer]:
    """Learns integers and biases of all layers; ``denoiser`` is unchanged.

    All processes learn together, and each has the same result. It equals that of a single process except for the
    summation order over samples. Every sample runs through either network once, for all blocks. A layer that a denoiser
    call uses several times is learned on its first use.

    Args:
        denoiser: Full-precision denoiser.
        family: Its architecture.
        specs: Layers to round, and their bits.
        estimator: Range estimator of an output channel's weights.
        samples: Denoiser calls of the full-precision model.
        session: Journal with finished blocks, which are not learned again; offload of the samples; progress.
        shards: Shards of this process's samples among those of all processes.
        procedure: Rounding algorithm.

    Returns:
        Rounded layers by name, on the CPU.

    Raises:
        ValueError: The denoiser never calls a layer.
    """
    blocks = reconstruction_blocks(denoiser, family, [spec.name for spec in specs])
    learner, offload = _Learner(denoiser, specs, estimator, session, procedure), session.offload
    names, pieces = list(blocks), session.journal.pieces()
    missing = {name for name in names if _piece(name) not in pieces}
    with (
        block_runners(denoiser, names, samples, offload) as full,
        block_runners(learner.quantized, names, samples, offload) as quantized,
        session.progress(ROUNDING_TITLE, len(missing)) as advance,
    ):
        while stop := next_block(full, names, session.ranks):
            name, indices = stop
            rows = [samples[index].rows for index in indices]
            calls = _Calls(_calls_at(full, indices), _calls_at(quantized, indices), shards.of(indices), rows)
            if name in blocks:
                outputs = _learn_or_recall(learner, name, blocks.pop(name), calls, session)
                if name in missing:
                    advance()
            else:
                outputs = [offload.put(call.run(denoiser)) for call in calls.full]
            for index, output, call in zip(indices, outputs, calls.quantized, strict=True):
                full[index].answer(output)
                quantized[index].answer(call.run(learner.quantized))
    if blocks:
        raise ValueError(f"block {next(iter(blocks))} is never called by the denoiser; exclude it by pattern")
    return learner.rounded
