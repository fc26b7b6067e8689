"""Output of ``bitbrush quantize --dry-run``."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitbrush.cli.console import note, say, show, table, warn

if TYPE_CHECKING:
    from bitbrush.methods.state import QuantizationState
    from bitbrush.network.layers import LayerSpec
    from bitbrush.quantization.estimate import Estimate

KINDS = {"conv": "Conv2d", "linear": "Linear"}


def print_plan(state: "QuantizationState", estimate: "Estimate", output: Path) -> None:
    """Prints layers, stages, memory and disk, and whether this machine would refuse."""
    from bitbrush.quantization.estimate import require_memory

    _print_layers(state, estimate)
    if state.session.ranks.world > 1:
        note(f"batches, calls and memory are those of the first of {state.session.ranks.world} processes")
    _print_stages(estimate)
    _print_sizes(estimate)
    try:
        require_memory(estimate, output, processes=state.session.ranks.here)
    except ValueError as problem:
        warn(f"it would be refused: {problem}")


def _print_layers(state: "QuantizationState", estimate: "Estimate") -> None:
    groups: dict[tuple[str, str, str], int] = defaultdict(int)
    left: dict[str, list[str]] = defaultdict(list)
    for spec in estimate.specs:
        if spec.excluded is None:
            kind = f"{KINDS[spec.kind]} of branches" if spec.factor else KINDS[spec.kind]
            groups[kind, _weight_bits(state, spec), _activation_bits(state, spec)] += 1
        else:
            left[spec.excluded].append(spec.name)
    for name, specs in estimate.networks.items():
        for spec in specs:
            groups[f"{KINDS[spec.kind]} of {name}", str(spec.weight_bits), _bits_beside(name, spec)] += 1
    layers = table("layers", "number", "weight bits", "activation bits")
    for (kind, weights, activations), count in sorted(groups.items()):
        layers.add_row(kind, str(count), weights, activations)
    show(layers)
    for reason, names in left.items():
        say(f"left in floating point ({reason}): {', '.join(names)}")
    networks = [name for name, part in state.pipe.components.items() if hasattr(part, "parameters")]
    quantized = (state.family.component, *estimate.networks)
    others = ", ".join(name for name in networks if name not in quantized) or "no whole network"
    say(f"in floating point: {others}; of {_listed(quantized)} norms and attention's products\n")


def _listed(quantized: Sequence[str]) -> str:
    return ", ".join(("the denoiser", *quantized[1:]))


def _bits_beside(network: str, spec: "LayerSpec") -> str:
    """Returns the activation bits of a layer beside the denoiser."""
    from bitbrush.network.layers import HIGH_PRECISION_ACTIVATION_BITS
    from bitbrush.network.own_dtype import is_text_encoder
    from bitbrush.quantization.text_encoders import INPUT_BITS

    if spec.high_precision:
        return str(HIGH_PRECISION_ACTIVATION_BITS)
    if is_text_encoder(network):
        return f"{INPUT_BITS} per token, {HIGH_PRECISION_ACTIVATION_BITS} where they are outliers"
    return str(INPUT_BITS)


def _activation_bits(state: "QuantizationState", spec: "LayerSpec") -> str:
    from bitbrush.calibration.relaxing import MeasuredRelaxation
    from bitbrush.network.layers import HIGH_PRECISION_ACTIVATION_BITS

    if spec.high_precision:
        return f"{HIGH_PRECISION_ACTIVATION_BITS} at every step"
    relax = state.recipe.relax
    if isinstance(relax, MeasuredRelaxation):
        return f"measured, {relax.average:g} on average"
    return f"{state.recipe.activations}{f', relaxed {relax}' if relax else ''}"


def _weight_bits(state: "QuantizationState", spec: "LayerSpec") -> str:
    from bitbrush.methods.recipe import WeightAllocation
    from bitbrush.numerics.limits import MAX_WEIGHT_BITS

    wanted = state.recipe.weight_allocation is WeightAllocation.MEASURED and state.allocated is None
    measured = wanted and spec.weight_bits < MAX_WEIGHT_BITS and not spec.factor
    return f"measured, {spec.weight_bits} on average" if measured else str(spec.weight_bits)


def _print_stages(estimate: "Estimate") -> None:
    stages = table("stage", "batches", "denoiser calls per batch", "in all")
    for one in estimate.stages:
        calls = one.batches * one.calls_per_batch
        stages.add_row(
            one.name.replace("_", " "), str(one.batches or "-"), str(one.calls_per_batch or "-"), str(calls or "-")
        )
    show(stages)


def _print_sizes(estimate: "Estimate") -> None:
    from bitbrush.session.disk import size_text

    samples = f", up to {size_text(estimate.offloaded)} before for samples" if estimate.offloaded else ""
    say(
        f"\nmemory: up to {size_text(estimate.resident + estimate.memory)}, {size_text(estimate.resident)} of them "
        f"already held\ndisk: {size_text(estimate.artifact)} for the artifact, {size_text(estimate.work)} for "
        f"unfinished work beside it meanwhile{samples}\nnothing was written"
    )
