"""Command ``bitbrush inspect``."""

import difflib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitbrush.cli.console import quiet_libraries, say, say_unbroken, show, show_facts, table
from bitbrush.cli.execution import chosen, fallback_lines, in_integers
from bitbrush.cli.outputs import require_file_output
from bitbrush.cli.progress import shown

if TYPE_CHECKING:
    from bitbrush.bench.pages.plots import LinePlot
    from bitbrush.runtime.interface import Execution
    from bitbrush.timeline.schedule import Activations, ActivationSchedule, DynamicRanges

ROWS_SHOWN = 12


def inspect(
    artifact: Annotated[Path, typer.Argument(metavar="DIR", help="What `bitbrush quantize` made, folder or file.")],
    layers: Annotated[bool, typer.Option("--layers", help="List every layer and how it is treated.")] = False,
    layer: Annotated[str | None, typer.Option(help="Show the activation range of this layer over the steps.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Write a plot of activation bits over the steps, with --layer of its range, as .svg, .png or .pdf."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the manifest, or the layer's ranges, as JSON.")
    ] = False,
) -> None:
    """Show what an artifact holds: recipe, bits, sizes, cost, layers, and activation ranges over the steps."""
    if plot:
        require_file_output(plot, [artifact], option="--plot")
        _require_format(plot)
    quiet_libraries()
    from bitbrush.artifact.verification import reading

    with reading(artifact) as (root, manifest):  # the folder of a single file is temporary
        if layer:
            _show_layer(root, manifest, layer, plot, as_json=as_json)
        elif as_json:
            print(json.dumps(manifest, indent=1))
        else:
            executions = _executions(root, manifest)
            _show_summary(artifact, manifest)
            _show_layers(manifest, executions) if layers else _show_kinds(manifest)
            _show_executions(executions)
        if plot and not layer:
            _plot_bits(root, manifest, plot)


def _require_format(plot: Path) -> None:
    from bitbrush.bench.pages.plot_files import require_format

    require_format(plot)


def _plot_bits(root: Path, manifest: dict[str, Any], plot: Path) -> None:
    from bitbrush.artifact.store import read_layers

    inner = {entry["name"] for entry in manifest["layers"] if not entry["high_precision"]}
    schedules = [_scheduled(layer.activations) for layer in read_layers(root) if layer.name in inner]
    _write_plot(_bits_plot(schedules), plot)
    say_unbroken(f"plot: {plot}")


def _executions(root: Path, manifest: dict[str, Any]) -> "tuple[Execution, ...]":
    """Predicts how each quantized layer would be executed on this machine."""
    from bitbrush.artifact.denoiser import denoiser_executions
    from bitbrush.artifact.network import network_class, network_executions

    choice = chosen("auto", None, "expanded")
    executions = denoiser_executions(root / manifest["denoiser"]["component"], choice, shown)
    for name in manifest.get("networks", {}):
        beside = network_executions(root / name, network_class(root, name), choice)
        executions += tuple(replace(one, layer=f"{name}: {one.layer}") for one in beside)
    return executions


def _show_summary(artifact: Path, manifest: dict[str, Any]) -> None:
    from bitbrush.artifact.sizes import denoiser_sizes, network_sizes

    recipe, plan = manifest["recipe"], manifest["plan"]
    measured = ", measured by layer" if recipe.get("weight_allocation") == "measured" else ""
    facts = {
        "artifact": str(artifact),
        "made of": manifest["base_model"],
        "method": f"{recipe['method']}, W{recipe['weights']}A{recipe['activations']}, {recipe['rounding']} rounding",
        "weight bits": f"{recipe['weights']} on average{measured}",
        "relaxed steps": f"{recipe['relax']}, {plan['average_activation_bits']:.2f} activation bits on average",
        "all products": _product_bits(plan),
        "ranges": f"weights {recipe['weight_range']}, activations {recipe['activation_range']}",
        "low rank": str(recipe.get("low_rank", "none")),
        "first token": _first_token(recipe, plan),
        "plan": f"{plan['scheduler']}, {recipe['steps']} steps, guidance {recipe['guidance_scale']:g}",
        "calibration": f"{recipe['num_prompts']} prompts, seed {recipe['seed']}",
        "denoiser": denoiser_sizes(manifest).text,
        **{name.replace("_", " "): sizes.text for name, sizes in network_sizes(manifest).items()},
        "cost": ", ".join(
            f"{phase.replace('_', ' ')} {cost['seconds']:.1f} s" for phase, cost in manifest["cost"].items()
        ),
        "made with": ", ".join(f"{name} {number}" for name, number in manifest["versions"].items()),
    }
    show_facts(facts)
    say("")


def _product_bits(plan: dict[str, Any]) -> str:
    bits = plan.get("product_bits")
    if bits is None:
        return "not counted"
    return (
        f"{bits['weights']:.2f} weight bits, {bits['activations']:.2f} activation bits on average, with branches and "
        "layers next to the latents"
    )


def _first_token(recipe: dict[str, Any], plan: dict[str, Any]) -> str:
    ratio = plan.get("start_token_ratio")
    measured = "" if ratio is None else f", the start token's norm is {ratio:.3g} times the others'"
    return f"{recipe.get('first_token', 'quantized')}{measured}"


def _show_kinds(manifest: dict[str, Any]) -> None:
    kinds = Counter((entry["kind"], _treatment(entry)) for entry in manifest["layers"])
    for name, network in manifest.get("networks", {}).items():
        kinds.update((f"{entry['kind']} of {name}", _treatment(entry)) for entry in network["layers"])
        kinds.update((f"embedding of {name}", "8 bits per row") for _ in network["tables"])
    counted = table("layers", "treatment", "number")
    for (kind, treatment), number in kinds.items():
        counted.add_row(kind, treatment, str(number))
    show(counted)
    say("--layers lists them all; --layer NAME shows one layer's activation range over the steps")


def _show_executions(executions: "tuple[Execution, ...]") -> None:
    say(f"\non this machine {in_integers(executions)}")
    for line in fallback_lines(executions):
        say(f"  {line}")


def _show_layers(manifest: dict[str, Any], executions: "tuple[Execution, ...]") -> None:
    kernels = {one.layer: one.kernel for one in executions}
    listed = table("layer", "kind", "shape", "treatment", "computed as")
    beside = [
        {**entry, "name": f"{name}: {entry['name']}"}
        for name, network in manifest.get("networks", {}).items()
        for entry in network["layers"]
    ]
    for entry in (*manifest["layers"], *beside):
        listed.add_row(
            entry["name"],
            entry["kind"],
            "x".join(map(str, entry["shape"])),
            _treatment(entry),
            kernels.get(entry["name"], ""),
        )
    show(listed)


def _treatment(entry: dict[str, Any]) -> str:
    if entry["excluded"] is not None:
        return f"floating point ({entry['excluded']})"
    if entry.get("factor"):
        return f"branch, {entry['weight_bits']}-bit weights, 16-bit inputs"
    return f"{entry['weight_bits']}-bit weights{', relaxed at every step' if entry['high_precision'] else ''}"


def _show_layer(root: Path, manifest: dict[str, Any], name: str, plot: Path | None, *, as_json: bool) -> None:
    from bitbrush.artifact.store import read_layer
    from bitbrush.timeline.schedule import DynamicRanges

    quantized = [entry["name"] for entry in manifest["layers"] if entry["excluded"] is None]
    if name not in quantized:
        near = difflib.get_close_matches(name, quantized, n=3, cutoff=0.4)
        raise ValueError(
            f"layer {name!r} is not among the {len(quantized)} quantized ones"
            f"{'; near are ' + ', '.join(near) if near else ''}; --layers lists all"
        )
    activations = read_layer(root, name).activations
    if isinstance(activations, DynamicRanges) and not plot:
        _show_dynamic(name, activations, as_json=as_json)
        return
    schedule = _scheduled(activations)
    if plot:
        _write_plot(_range_plot(name, schedule), plot)
    if as_json:
        print(json.dumps(_document(name, schedule), indent=1))
    else:
        _print_ranges(name, schedule)
    if plot:
        say_unbroken(f"plot: {plot}")


def _show_dynamic(name: str, ranges: "DynamicRanges", *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"layer": name, "dynamic_bits": ranges.bits}, indent=1))
        return
    say(f"{name}: {ranges.bits} bits at every step; each token, or image, on the range it has at run time")


def _scheduled(activations: "Activations") -> "ActivationSchedule":
    """Returns static ranges unchanged.

    Raises:
        ValueError: The ranges are computed at run time.
    """
    from bitbrush.timeline.schedule import DynamicRanges

    if isinstance(activations, DynamicRanges):
        raise ValueError("the artifact's activation ranges are found at run time; there is nothing to plot")
    return activations


def _document(name: str, schedule: "ActivationSchedule") -> dict[str, Any]:
    all_qparams = [
        {
            "timestep": timestep,
            "low": qparams.range[0],
            "high": qparams.range[1],
            "bits": qparams.bits,
            "scale": qparams.scale,
        }
        for timestep, qparams in zip(schedule.timesteps, schedule.qparams, strict=True)
    ]
    return {"layer": name, "qparams": all_qparams}


def _print_ranges(name: str, schedule: "ActivationSchedule") -> None:
    """Prints at most ROWS_SHOWN evenly spaced steps with the first and the last, each range drawn to one scale."""
    count = len(schedule.qparams)
    chosen = sorted(
        {round(i * (count - 1) / max(1, min(count, ROWS_SHOWN) - 1)) for i in range(min(count, ROWS_SHOWN))}
    )
    low, high = (f(g.range[side] for g in schedule.qparams) for side, f in ((0, min), (1, max)))
    ranges = table("step", "timestep", "bits", "low", "high", "range", title=name)
    ranges.columns[-1].justify = "left"
    for step in chosen:
        qparams = schedule.qparams[step]
        bar = _bar(qparams.range, low, high)
        ranges.add_row(
            str(step), f"{schedule.timesteps[step]:g}", str(qparams.bits), *(f"{end:.3f}" for end in qparams.range), bar
        )
    show(ranges)
    if count == 1:
        say("one static range for all steps")


def _bar(ends: tuple[float, float], low: float, high: float, width: int = 30) -> str:
    first, last = (round((end - low) / (high - low) * (width - 1)) for end in ends)
    return " " * first + "━" * (last - first + 1)


def _bits_plot(schedules: "Sequence[ActivationSchedule]") -> "LinePlot":
    """Plots the largest, mean and smallest activation bits of the layers at each step."""
    from bitbrush.bench.pages.plots import (
        STEP_AXIS,
        Axis,
        LinePlot,
        Scale,
        Series,
    )

    by_step = list(zip(*((qparams.bits for qparams in one.qparams) for one in schedules), strict=True))
    steps = list(range(len(by_step)))
    series = [
        Series("most", steps, [max(bits) for bits in by_step]),
        Series("mean of the layers", steps, [sum(bits) / len(bits) for bits in by_step]),
        Series("fewest", steps, [min(bits) for bits in by_step]),
    ]
    return LinePlot("Activation bits over the steps", series, STEP_AXIS, Axis("bits", Scale.WHOLE))


def _range_plot(name: str, schedule: "ActivationSchedule") -> "LinePlot":
    from bitbrush.bench.pages.plots import (
        STEP_AXIS,
        Axis,
        LinePlot,
        Series,
    )

    steps = list(range(len(schedule.qparams)))
    lows, highs = zip(*(qparams.range for qparams in schedule.qparams), strict=True)
    series = [Series("highest", steps, highs), Series("lowest", steps, lows)]
    return LinePlot(name, series, STEP_AXIS, Axis("range of the layer's input"))


def _write_plot(plot: "LinePlot", path: Path) -> None:
    from bitbrush.bench.pages.plot_files import plot_file
    from bitbrush.session.disk import write_whole

    write_whole(plot_file(plot, path), path)
