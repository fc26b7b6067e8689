"""What ``bitbrush quantize --dry-run`` prints."""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from bitbrush.cli.console import duration, note, say, show, table, warn

if TYPE_CHECKING:
    from bitbrush.artifact.estimate import Estimate
    from bitbrush.artifact.walk import PipelineWalk
    from bitbrush.methods.method import Job
    from bitbrush.network.layers import LayerSpec

KINDS = {"conv": "Conv2d", "linear": "Linear"}


def print_plan(job: "Job", estimate: "Estimate", walk: "PipelineWalk", output: Path) -> None:
    """Layers, phases, memory and disk; times two denoiser calls where these fit into the memory."""
    from bitbrush.artifact.estimate import require_room
    from bitbrush.artifact.pace import measure_pace, phase_seconds

    _print_layers(job, estimate)
    if job.ranks.world > 1:
        note(f"batches, calls, times and memory are those of the first of {job.ranks.world} processes")
    try:
        require_room(estimate, output, processes=job.ranks.here)
    except ValueError as problem:
        _print_phases(estimate, {})
        _print_sizes(estimate)
        warn(f"it would be refused: {problem}")
        return
    note("timing two denoiser calls of the calibration's batch size")
    _print_phases(estimate, phase_seconds(job, walk, measure_pace(job)))
    _print_sizes(estimate)


def _print_layers(job: "Job", estimate: "Estimate") -> None:
    groups: dict[tuple[str, str, str], int] = defaultdict(int)
    left: dict[str, list[str]] = defaultdict(list)
    for spec in estimate.specs:
        if spec.excluded is None:
            kind = f"{KINDS[spec.kind]} of branches" if spec.factor else KINDS[spec.kind]
            groups[kind, _weight_bits(job, spec), _activation_bits(job, spec)] += 1
        else:
            left[spec.excluded].append(spec.name)
    layers = table("layers", "number", "weight bits", "activation bits")
    for (kind, weights, activations), count in sorted(groups.items()):
        layers.add_row(kind, str(count), weights, activations)
    show(layers)
    for reason, names in left.items():
        say(f"left in floating point ({reason}): {', '.join(names)}")
    networks = [name for name, part in job.pipe.components.items() if hasattr(part, "parameters")]
    others = ", ".join(name for name in networks if name != job.family.component)
    say(f"in floating point: {others}; of the denoiser norms and attention's products\n")


def _activation_bits(job: "Job", spec: "LayerSpec") -> str:
    from bitbrush.network.layers import EDGE_ACTIVATION_BITS
    from bitbrush.timeline.plan import MeasuredRelaxation

    if spec.edge:
        return f"{EDGE_ACTIVATION_BITS} at every step"
    relax = job.recipe.relax
    if isinstance(relax, MeasuredRelaxation):
        return f"measured, {relax.average:g} on average"
    return f"{job.recipe.activations}{f', relaxed {relax}' if relax else ''}"


def _weight_bits(job: "Job", spec: "LayerSpec") -> str:
    from bitbrush.methods.recipe import WeightAllocation
    from bitbrush.numerics.weights import MAX_WEIGHT_BITS

    wanted = job.recipe.weight_allocation is WeightAllocation.MEASURED and job.allocated is None
    measured = wanted and spec.weight_bits < MAX_WEIGHT_BITS and not spec.factor
    return f"measured, {spec.weight_bits} on average" if measured else str(spec.weight_bits)


def _print_phases(estimate: "Estimate", seconds: dict[str, float]) -> None:
    phases = table("phase", "batches", "denoiser calls per batch", "in all", "about", "memory")
    for one in estimate.phases:
        phases.add_row(
            one.name.replace("_", " "),
            str(one.batches or "-"),
            str(one.calls_per_batch or "-"),
            str(one.batches * one.calls_per_batch or "-"),
            duration(seconds[one.name]) if seconds else "not timed",
            f"+ {one.bytes / 2**20:.0f} MiB",
        )
    show(phases)
    if seconds:
        say(f"\nabout {duration(sum(seconds.values()))} in all, on this machine and if it has nothing else to do")


def _print_sizes(estimate: "Estimate") -> None:
    from bitbrush.timeline.disk import size_text

    waiting = estimate.spool_bytes
    samples = f", {size_text(waiting)} before for {estimate.samples} samples" if waiting else ""
    say(
        f"memory: {size_text(estimate.peak_bytes)} at most, {size_text(estimate.resident)} of them already held; the "
        f"denoiser would take {size_text(estimate.weight_bytes)} in float32\n"
        f"disk: {size_text(estimate.artifact_bytes)} for the artifact, {size_text(estimate.work_bytes)} for unfinished "
        f"work beside it meanwhile{samples}\n"
        "nothing was written"
    )
