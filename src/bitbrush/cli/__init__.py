"""Command line; commands import their dependencies when they run, so that ``--help`` is fast."""

from typing import Annotated

import typer

from bitbrush import __version__
from bitbrush.cli.ablate import ablate
from bitbrush.cli.bench import bench
from bitbrush.cli.compare import compare
from bitbrush.cli.console import reporting_errors
from bitbrush.cli.demo import demo
from bitbrush.cli.doctor import doctor
from bitbrush.cli.generate import generate
from bitbrush.cli.inspect import inspect
from bitbrush.cli.plans import plans
from bitbrush.cli.quantize import quantize
from bitbrush.cli.recalibrate import recalibrate
from bitbrush.cli.sensitivity import sensitivity
from bitbrush.cli.signals import ignore_signals, unwind_on_signals
from bitbrush.cli.verify import verify
from bitbrush.session.allocator import allow_tuning

app = typer.Typer(
    name="bitbrush",
    help="Runs text-to-image diffusion pipelines in few bits, and measures what was kept.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    quantize,
    recalibrate,
    generate,
    compare,
    bench,
    plans,
    ablate,
    sensitivity,
    inspect,
    verify,
    demo,
    doctor,
):
    app.command()(reporting_errors(command))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bitbrush {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Runs text-to-image diffusion pipelines in few bits, and measures what was kept."""


def main() -> None:
    """Runs the command line in its own process."""
    unwind_on_signals()
    allow_tuning()
    try:
        app()
    finally:
        ignore_signals()
