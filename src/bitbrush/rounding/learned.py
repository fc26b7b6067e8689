"""Learned rounding of a whole denoiser, block after block, in one walk through both networks.

Each block's layers are first rounded one by one with error compensation; a block of several layers is then learned as
a whole. What follows sees the inputs that the rounded network really produces.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bitbrush.network.family import Family
from bitbrush.network.layers import LayerSpec, set_weight
from bitbrush.numerics.weights import WeightRange
from bitbrush.rounding.blocks import BlockCall, BlockInputs, reconstruction_blocks, walks
from bitbrush.rounding.compensation import Compensated, round_with_compensation
from bitbrush.rounding.nearest import RoundedLayer
from bitbrush.rounding.reconstruction import reconstruct
from bitbrush.timeline.progress import Progress
from bitbrush.timeline.trajectory import DenoiserCall


class _Learner:
    """``full`` keeps its weights; ``quantized`` is a copy that takes on the rounded ones."""

    def __init__(self, full: nn.Module, specs: Sequence[LayerSpec], estimator: WeightRange) -> None:
        self.full = full
        self.quantized = copy.deepcopy(full).requires_grad_(requires_grad=False)
        self.rounded: dict[str, RoundedLayer] = {}
        self._bits = {spec.name: spec.weight_bits for spec in specs}
        self._estimator = estimator
        self._generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def learn(self, layers: Sequence[str], full: Sequence[BlockCall], quantized: Sequence[BlockCall]) -> list[Tensor]:
        """Rounds the layers of the block called; returns the full-precision outputs of ``full``."""
        name = full[0].name
        inputs = BlockInputs.of(quantized)
        compensated, outputs = self._compensate(layers, full, quantized)
        weights = {layer: start.weight for layer, start in compensated.items()}
        if len(layers) > 1:
            inner = {layer.removeprefix(name + "."): compensated[layer] for layer in layers}
            block = self.quantized.get_submodule(name)
            learned = reconstruct(block, inner, inputs, torch.cat(outputs), self._generator)
            weights = {f"{name}.{layer}": weight for layer, weight in learned.items()}
        for layer, weight in weights.items():
            self._set(layer, RoundedLayer(weight, compensated[layer].bias))
        return outputs

    def _compensate(
        self, layers: Sequence[str], full: Sequence[BlockCall], quantized: Sequence[BlockCall]
    ) -> tuple[dict[str, Compensated], list[Tensor]]:
        compensated: dict[str, Compensated] = {}
        with walks(self.full, layers, full) as targets, walks(self.quantized, layers, quantized) as inputs:
            while waiting := [walk.request for walk in targets if walk.request]:
                name = waiting[0].name
                if name in compensated:
                    raise ValueError(f"layer {name} is called twice in one denoiser call; use nearest rounding")
                layer = self.full.get_submodule(name)
                assert isinstance(layer, nn.Conv2d | nn.Linear)
                target_x = torch.cat([call.args[0] for call in waiting])
                x = torch.cat([walk.request.args[0] for walk in inputs if walk.request])
                start = round_with_compensation(layer, self._bits[name], self._estimator, target_x, x, self._generator)
                compensated[name] = start
                self._set(name, RoundedLayer(start.weight, start.bias))
                for network, walking in ((self.full, targets), (self.quantized, inputs)):
                    for walk in walking:
                        assert walk.request is not None
                        walk.answer(walk.request.run(network))
            if missing := [layer for layer in layers if layer not in compensated]:
                raise ValueError(f"layer {missing[0]} is never called by the denoiser; exclude it by pattern")
            outputs: list[Tensor] = [walk.result for walk in targets]  # type: ignore[misc]
            return compensated, outputs

    def _set(self, name: str, rounded: RoundedLayer) -> None:
        self.rounded[name] = rounded
        set_weight(self.quantized.get_submodule(name), rounded.weight.dequantize(), rounded.bias)


def learn_rounding(
    denoiser: nn.Module,
    family: Family,
    specs: Sequence[LayerSpec],
    estimator: WeightRange,
    samples: Sequence[DenoiserCall],
    progress: Progress,
) -> dict[str, RoundedLayer]:
    """Integers and biases by layer name; ``denoiser`` stays as it is. ``samples``: calls of the full-precision model.

    Every sample runs through either network once, for all blocks together. Raises ValueError if a layer is called
    more than once or never.
    """
    blocks = reconstruction_blocks(denoiser, family, [spec.name for spec in specs])
    learner = _Learner(denoiser, specs, estimator)
    names = list(blocks)
    with (
        walks(denoiser, names, samples) as full,
        walks(learner.quantized, names, samples) as quantized,
        progress("learning rounding", len(names)) as advance,
    ):
        while calls := [walk.request for walk in full if walk.request]:
            inputs = [walk.request for walk in quantized if walk.request]
            if calls[0].name not in blocks:
                raise ValueError(f"block {calls[0].name} is called twice in one denoiser call; use nearest rounding")
            outputs = learner.learn(blocks.pop(calls[0].name), calls, inputs)
            for walk, output in zip(full, outputs, strict=True):
                walk.answer(output)
            for walk, call in zip(quantized, inputs, strict=True):
                with torch.no_grad():
                    walk.answer(call.run(learner.quantized))
            advance()
    if blocks:
        raise ValueError(f"block {next(iter(blocks))} is never called by the denoiser; exclude it by pattern")
    return learner.rounded
