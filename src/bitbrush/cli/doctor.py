"""Command ``bitbrush doctor``."""

import importlib.metadata
import json
import platform
from typing import TYPE_CHECKING, Annotated

import typer

from bitbrush.cli.console import out, quiet_libraries, say, show, show_facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from bitbrush.runtime.choose import Choice
    from bitbrush.runtime.speed import LayerSpeed

PACKAGES = ("bitbrush", "torch", "diffusers", "transformers", "triton", "peft")


def doctor(
    measure: Annotated[bool, typer.Option(help="Time two layers for five seconds.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what this machine has, which kernels would run here, and how fast they are."""
    quiet_libraries()
    from bitbrush.runtime import speed
    from bitbrush.runtime.choose import choose_runtime
    from bitbrush.runtime.machine import cpu_facts, gpu_facts

    choice = choose_runtime()
    facts = {**cpu_facts(), **gpu_facts(), **_runtime_facts(choice), "versions": _versions()}
    if not as_json:
        show_facts(facts)
    speeds = speed.measure_layers(choice, speed.SECONDS) if measure else ()
    if as_json:
        rows = [{"layer": layer.layer, "milliseconds": dict(layer.milliseconds)} for layer in speeds]
        print(json.dumps({**facts, "speed": rows}, indent=1))
    elif speeds:
        out().print()
        show(_speed_table(speeds))
        say("Median milliseconds of a layer, with its input's quantization. Times vary with other load of the machine.")


def _runtime_facts(choice: "Choice") -> dict[str, str]:
    facts = {"runtime": f"{choice.runtime.name}: {choice.runtime.description} ({choice.reason})"}
    if choice.shortfall:
        facts["slower than it could be"] = choice.shortfall
    return facts


def _versions() -> str:
    installed = {name: _version(name) for name in PACKAGES}
    versions = [f"{name} {version}" for name, version in installed.items() if version]
    return ", ".join([*versions, f"Python {platform.python_version()}", platform.system()])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _speed_table(speeds: "Sequence[LayerSpeed]") -> "Table":
    from rich.table import Table

    from bitbrush.runtime.speed import FLOATS, INTEGERS

    names = (*FLOATS, INTEGERS)
    table = Table("layer", *names, *(f"times {name}" for name in FLOATS), box=None, pad_edge=False)
    for speed in speeds:
        times = (f"{speed.milliseconds[name]:.2f}" for name in names)
        table.add_row(speed.layer, *times, *(f"{speed.faster_than(name):.2f}" for name in FLOATS))
    return table
