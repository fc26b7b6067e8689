"""Options that select the runtime of an artifact, and messages about the selection."""

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
    str, typer.Option(help="Weights of up to 4 bits: expanded once to a byte, or low: half a byte each.")
]
UnquantizedOption: TypeAlias = Annotated[
    str, typer.Option(help="Of artifacts: text encoders and VAE that are not quantized, float32 or bfloat16 (faster).")
]


def chosen(runtime: str, dtype: str | None, memory: str, unquantized: str = "float32") -> "Choice":
    """Selects the runtime by these names and announces it."""
    from bitbrush.runtime.choose import runtime_named

    choice = runtime_named(runtime, dtype, memory, unquantized=unquantized)
    announce(choice)
    return choice


def announce(choice: "Choice") -> None:
    """Prints the runtime, the reason for it and what slows it down."""
    note(f"{choice.runtime.name}: {choice.runtime.description} ({choice.reason})")
    if choice.shortfall:
        warn(f"slower than it could be: {choice.shortfall}")


def tell_executions(pipe: "DiffusionPipeline") -> str:
    """Reports how many layers run in integers, and every other layer with its reason; returns the runtime's name."""
    from bitbrush.network.families import denoiser_name
    from bitbrush.runtime.lowered import lowered_of

    lowered = lowered_of(getattr(pipe, denoiser_name(pipe)))
    if lowered is None:
        return "torch: float32"
    if lowered.runtime != "reference":  # the description of the reference runtime already says so
        note(in_integers(lowered.executions))
        for line in fallback_lines(lowered.executions):
            warn(line)
    return lowered.name


def in_integers(executions: "Sequence[Execution]") -> str:
    """Counts the quantized layers that run in integers, as a message."""
    count = sum(one.fallback is None for one in executions)
    return f"{count} of {len(executions)} quantized layers run in integers"


def fallback_lines(executions: "Sequence[Execution]") -> list[str]:
    """Formats a line for each fallback of layers from integers, with their names."""
    from bitbrush.runtime.interface import layers_by_fallback

    return [f"as {how}: {', '.join(layers)}" for how, layers in layers_by_fallback(executions).items()]
