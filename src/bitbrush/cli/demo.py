"""Command ``bitbrush demo``."""

from pathlib import Path
from typing import Annotated

import typer

from bitbrush.cli.console import note, quiet_libraries, say_unbroken
from bitbrush.cli.progress import shown


def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Directory for the page, its figures and artifacts.")
    ] = Path("demo"),
) -> None:
    """Quantize the bundled emoji-sd by rtn and best to W4A8; write a page that compares them with full precision."""
    note("bitbrush demo: emoji-sd by rtn and best, then images and figures on held-out prompts (a few minutes)")
    quiet_libraries()
    from bitbrush.bench.experiments.demo.run import run_demo

    page = run_demo(output, shown)
    say_unbroken(f"{page}\nOpen it in a browser.")
