"""Quantization of text encoders: integer weights, and 8-bit inputs whose ranges are found at run time, per token.

Weights below 8 bits are rounded with error compensation on the calibration prompts (GPTQ, arXiv 2210.17323). The layers
are rounded in groups, in the order of the network; each group sees what the rounded layers before it give.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.methods.state import QuantizationState
from bitbrush.network.layers import (
    HIGH_PRECISION_ACTIVATION_BITS,
    HIGH_PRECISION_WEIGHT_BITS,
    LayerSpec,
    QuantizedLayer,
)
from bitbrush.network.lazy_weights import set_quantized_weight, shallow_copy, weight_shape
from bitbrush.network.other_networks import QuantizedNetwork, round_embeddings
from bitbrush.numerics.dynamic import fake_quantize_rows
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import QuantizedWeight, round_to_nearest, weight_qparams
from bitbrush.rounding.compensation import round_by_hessian
from bitbrush.session.offload import CPU
from bitbrush.session.progress import Progress
from bitbrush.timeline.schedule import DynamicRanges
from bitbrush.timeline.trajectory import start

INPUT_BITS = 8
OUTLYING_ERROR = 1e-3
"""Relative squared error of a layer's output, from 8-bit inputs, above which its inputs get 16 bits: 30 dB."""
HESSIAN_BYTES = 1 << 30
"""Hessians that are collected in one pass over the prompts."""
CALLS_TRIED = 4
"""Calls on which the error of 8-bit inputs is measured."""


@dataclass(frozen=True)
class Call:
    """Arguments of one call of a text encoder."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @torch.no_grad()
    def run(self, encoder: nn.Module) -> Any:
        """Runs the call."""
        return encoder(*self.args, **self.kwargs)


def record_calls(state: QuantizationState, names: Sequence[str]) -> dict[str, list[Call]]:
    """Runs the pipeline on all calibration prompts up to its first denoiser call, and records the encoders' calls."""
    calls: dict[str, list[Call]] = {name: [] for name in names}
    with ExitStack() as stack:
        for name in names:

            def note(_: nn.Module, args: Any, kwargs: Any, taken: list[Call] = calls[name]) -> None:
                taken.append(Call(args, kwargs))

            handle = getattr(state.pipe, name).register_forward_pre_hook(note, with_kwargs=True)
            stack.callback(handle.remove)
        for batch in state.batches:
            with start(state.pipe, state.family.component, batch, state.recipe.plan) as trajectory:
                assert trajectory.request is not None
    return calls


def encoder_specs(name: str, encoder: nn.Module, bits: int) -> tuple[LayerSpec, ...]:
    """Lists the Linear layers of a text encoder.

    Raises:
        ValueError: It has none.
    """
    layers = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    if not layers:
        raise ValueError(
            f"networks has text_encoders, but {name} ({type(encoder).__name__}) has no Linear layer to quantize; leave "
            "text_encoders out of networks"
        )
    return tuple(LayerSpec(key, "linear", weight_shape(layer), bits) for key, layer in layers.items())


def quantize_text_encoder(
    name: str, encoder: nn.Module, bits: int, calls: Sequence[Call], progress: Progress
) -> QuantizedNetwork:
    """Quantizes the Linear layers and the table of tokens of a text encoder, which is unchanged.

    Args:
        name: Name of the encoder in its pipeline.
        encoder: Full-precision text encoder.
        bits: Weight bits.
        calls: Its calls on the calibration prompts.
        progress: Callback that receives progress reports.

    Returns:
        Integers with names in the encoder.
    """
    working = shallow_copy(encoder)
    specs = _with_wide_inputs(encoder, encoder_specs(name, encoder, bits), calls)
    rounded: dict[str, QuantizedWeight] = {}
    with progress(f"rounding {name}", len(specs)) as advance:
        for group in _groups(specs):
            hessians = _hessians(working, group, calls)
            for spec in group:
                layer: Any = encoder.get_submodule(spec.name)
                rounded[spec.name] = _rounded(layer.weight.detach().float(), spec, hessians.get(spec.name))
                set_quantized_weight(working.get_submodule(spec.name), rounded[spec.name], None)
                rounded[spec.name] = rounded[spec.name].to(CPU)
                advance()
    layers = tuple(_layer(encoder.get_submodule(spec.name), spec, rounded[spec.name]) for spec in specs)
    return QuantizedNetwork(specs, layers, round_embeddings(encoder))


def _layer(module: nn.Module, spec: LayerSpec, weight: QuantizedWeight) -> QuantizedLayer:
    bias: Any = module.bias
    bits = HIGH_PRECISION_ACTIVATION_BITS if spec.high_precision else INPUT_BITS
    return QuantizedLayer(
        spec.name, weight, None if bias is None else bias.detach().float().cpu().clone(), DynamicRanges(bits)
    )


def _rounded(weight: Tensor, spec: LayerSpec, hessian: Tensor | None) -> QuantizedWeight:
    if hessian is None:
        return round_to_nearest(weight, weight_qparams(weight, spec.weight_bits, WeightRange.MSE))
    return round_by_hessian(weight, spec.weight_bits, WeightRange.MSE, hessian)


def _groups(specs: Sequence[LayerSpec]) -> Iterator[list[LayerSpec]]:
    """Yields consecutive layers whose Hessians fit into HESSIAN_BYTES together."""
    group: list[LayerSpec] = []
    held = 0
    for spec in specs:
        size = 4 * math.prod(spec.shape[1:]) ** 2
        if group and held + size > HESSIAN_BYTES:
            yield group
            group, held = [], 0
        group.append(spec)
        held += size
    yield group


def _hessians(working: nn.Module, group: Sequence[LayerSpec], calls: Sequence[Call]) -> dict[str, Tensor]:
    """Returns E[x x^T] of the layers' inputs; without those that keep 8 bits, or that no call reaches."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, x: Tensor) -> None:
        rows = x.detach().float().flatten(0, -2)
        if name not in sums:
            sums[name], counts[name] = rows.new_zeros(rows.shape[1], rows.shape[1]), 0
        sums[name].addmm_(rows.T, rows)
        counts[name] += len(rows)

    with _inputs(working, [spec.name for spec in group if spec.weight_bits < HIGH_PRECISION_WEIGHT_BITS], add) as any_:
        for call in calls if any_ else ():
            call.run(working)
    return {name: total.div_(counts[name]) for name, total in sums.items()}


@contextmanager
def _inputs(network: nn.Module, names: Sequence[str], receive: Any) -> Iterator[bool]:
    """Passes the inputs of the named layers to ``receive(name, x)`` while entered; yields whether there are any."""

    def hook(name: str) -> Any:
        return lambda _, args: receive(name, args[0])

    handles = [network.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        yield bool(handles)
    finally:
        for handle in handles:
            handle.remove()


def _with_wide_inputs(encoder: nn.Module, specs: tuple[LayerSpec, ...], calls: Sequence[Call]) -> tuple[LayerSpec, ...]:
    """Gives 8-bit weights and 16-bit inputs to layers whose output 8-bit inputs would change by OUTLYING_ERROR."""
    errors: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> None:
        layer: Any = encoder.get_submodule(name)
        wide = x.detach().float()
        y, error = (
            torch.nn.functional.linear(rows, layer.weight.float()).square().sum()
            for rows in (wide, fake_quantize_rows(wide, INPUT_BITS, within=1) - wide)
        )
        errors[name] = errors.get(name, 0) + torch.stack([error, y])

    with _inputs(encoder, [spec.name for spec in specs], add):
        for call in calls[:CALLS_TRIED]:
            call.run(encoder)
    wide = {name for name, (error, y) in errors.items() if float(error) > OUTLYING_ERROR * float(y)}
    return tuple(
        replace(spec, high_precision=True, weight_bits=HIGH_PRECISION_WEIGHT_BITS) if spec.name in wide else spec
        for spec in specs
    )
