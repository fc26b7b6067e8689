"""Command ``bitbrush card``."""

from pathlib import Path
from typing import Annotated

import typer

from bitbrush.cli.console import quiet_libraries, say_unbroken
from bitbrush.cli.execution import DtypeOption, MemoryOption, RuntimeOption, chosen
from bitbrush.cli.options import Overwrite
from bitbrush.cli.outputs import require_file_output


def card(
    artifact: Annotated[Path, typer.Argument(metavar="DIR", help="Artifact: a folder, or with -o a single file.")],
    bench: Annotated[
        Path | None, typer.Option(help="Results of `bitbrush bench` with this artifact, to show on the card.")
    ] = None,
    speed: Annotated[bool, typer.Option("--speed", help="Measure a denoiser call here, to show on the card.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write [DIR/README.md].")] = None,
    runtime: RuntimeOption = "auto",
    dtype: DtypeOption = None,
    memory: MemoryOption = "expanded",
    overwrite: Overwrite = False,
) -> None:
    """Write an artifact's model card, with what was measured: figures of a benchmark, speed on this machine."""
    if output is not None:
        require_file_output(output)
    elif artifact.is_file():
        raise ValueError(f"{artifact} is a single file, into which no card is written; give -o FILE, e.g. -o README.md")
    quiet_libraries()
    from bitbrush.artifact.card import Measured, model_card
    from bitbrush.artifact.folder import CARD
    from bitbrush.artifact.loading import load_with
    from bitbrush.artifact.manifest import manifest_digest
    from bitbrush.artifact.verification import artifact_digest, verified_manifest
    from bitbrush.bench.experiments.evidence import bench_table, call_time
    from bitbrush.methods.recipe import Recipe
    from bitbrush.session.disk import write_whole

    manifest = verified_manifest(artifact)
    digest = manifest_digest(artifact)
    target = output or artifact / CARD
    if target.is_file() and not overwrite and target.read_text(encoding="utf-8") != model_card(manifest, digest):
        raise ValueError(f"{target} is not as bitbrush wrote it first; give --overwrite to replace it, or -o FILE")
    table = bench_table(bench, artifact_digest(artifact)) if bench else ""
    took = ""
    if speed:
        pipe = load_with(artifact, chosen(runtime, dtype, memory))
        took = call_time(pipe, Recipe().updated(manifest["recipe"]).plan)
    write_whole(model_card(manifest, digest, Measured(took, table)), target)
    say_unbroken(f"wrote: {target}")
