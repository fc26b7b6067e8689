"""Options that choose what executes an artifact, and what is said of the choice."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from bitbrush.cli.console import note, warn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from bitbrush.runtime.choose import Choice
    from bitbrush.runtime.interface import Execution

RuntimeOption: TypeAlias = Annotated[
    str,
    typer.Option(help="Of artifacts: onednn or cuda (8-bit kernels), reference (emulated), auto."),
]
DtypeOption: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Between the integer products: float32 or bfloat16 [bfloat16 where it is fast]."),
]
MemoryOption: TypeAlias = Annotated[
    str, typer.Option(help="Weights of up to 4 bits: expanded once to a byte, or low: half a byte each, and slower.")
]


def chosen(runtime: str, dtype: str | None, memory: str) -> "Choice":
    """The executor of these names, announced."""
    from bitbrush.runtime.choose import runtime_named

    choice = runtime_named(runtime, dtype, memory)
    announce(choice)
    return choice


def announce(choice: "Choice") -> None:
    note(f"{choice.runtime.name}: {choice.runtime.description} ({choice.reason})")
    if choice.shortfall:
        warn(f"slower than it could be: {choice.shortfall}")


def tell_executions(pipe: "DiffusionPipeline") -> str:
    """Tells how many layers are computed in integers, and each that is not, by name and reason; gives the executor."""
    from bitbrush.network.families import denoiser_name
    from bitbrush.runtime.lowered import lowered_of

    lowered = lowered_of(getattr(pipe, denoiser_name(pipe)))
    if lowered is None:
        return "torch: float32"
    if lowered.runtime != "reference":  # which says so itself
        note(in_integers(lowered.executions))
        for line in fallback_lines(lowered.executions):
            warn(line)
    return lowered.name


def in_integers(executions: "Sequence[Execution]") -> str:
    count = sum(one.fallback is None for one in executions)
    return f"{count} of {len(executions)} quantized layers run in integers"


def fallback_lines(executions: "Sequence[Execution]") -> list[str]:
    """A line for each way in which layers are not computed in integers, with their names."""
    from bitbrush.runtime.interface import layers_by_fallback

    return [f"as {how}: {', '.join(layers)}" for how, layers in layers_by_fallback(executions).items()]
