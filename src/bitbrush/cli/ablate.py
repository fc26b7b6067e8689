"""Command ``bitbrush ablate``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitbrush.bench.networks import BUNDLED_CLIP, USUAL_CLIP
from bitbrush.cli.console import note, quiet_libraries, resumable, say, show, table, warn
from bitbrush.cli.execution import MemoryOption, RuntimeOption, announce
from bitbrush.cli.options import (
    BatchSize,
    Config,
    Generic,
    Images,
    Loras,
    Masks,
    PipelineArguments,
    Revision,
    Variant,
    command_line,
    lora_files,
    model_options,
)
from bitbrush.cli.outputs import require_file_output, require_output
from bitbrush.cli.progress import shown
from bitbrush.numerics.limits import MAX_COUNT, MAX_SEED, MAX_STEPS
from bitbrush.sources.model_names import require_known

if TYPE_CHECKING:
    from bitbrush.bench.experiments.ablate.recipes import Setting


def ablate(
    model: Annotated[str, typer.Argument(help="Full-precision model: bundled name, directory or hub id.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory for cells, artifacts, tables and report.")],
    methods: Annotated[
        str | None, typer.Option("--recipes", help="Methods with their usual keys, e.g. rtn,pcr,best [all but paper].")
    ] = None,
    recipes: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe",
            help="'[NAME:] METHOD KEY=VALUE ...', or a recipe file for METHOD; repeatable.",
        ),
    ] = None,
    bits: Annotated[str, typer.Option(help="Bit settings.")] = "W8A8,W4A8,W4A6,W4A4",
    against: Annotated[
        str | None, typer.Option(help="Recipe whose latent error the others' is a multiple of [pcr].")
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="Held-out prompts of the calibration's style: bundled sets or files; repeatable."),
    ] = None,
    unseen_prompts: Annotated[
        list[str] | None, typer.Option(help="Prompts of another style than the calibration's; repeatable.")
    ] = None,
    num_images: Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Images of each prompt set.")] = 32,
    calibration: Annotated[
        str | None, typer.Option("--calibration-prompts", help="Prompts to quantize with: a file or a bundled set.")
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(min=1, max=MAX_COUNT, help="How many of them to use [16].")] = None,
    clip: Annotated[
        str | None, typer.Option(help=f"CLIP model: bundled name, directory, hub id [{BUNDLED_CLIP} or {USUAL_CLIP}].")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=MAX_STEPS, help="Denoising steps [50].")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Guidance [7.5].")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Scheduler [the model's own].")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the images' noise.")] = 1,
    batch_size: BatchSize = 16,
    markdown: Annotated[
        Path | None, typer.Option(help="File for the tables too, or with a marked section for them.")
    ] = None,
    runtime: RuntimeOption = "auto",
    dtype: Annotated[
        str, typer.Option(help="Between the integer products: float32, so that only recipes differ, or bfloat16.")
    ] = "float32",
    memory: MemoryOption = "expanded",
    pipeline_arguments: PipelineArguments = None,
    images: Images = None,
    masks: Masks = None,
    generic: Generic = False,
    revision: Revision = None,
    variant: Variant = None,
    config: Config = None,
    loras: Loras = None,
) -> None:
    """Compare recipes at several bit settings under one protocol; run it again to go on, or twice to share the work."""
    _require_outputs(output, markdown, [model, config, images, masks, *lora_files(loras)])
    require_known(model, revision)
    quiet_libraries()
    from bitbrush.bench.experiments.ablate.folder import REPORT
    from bitbrush.bench.experiments.ablate.run import (
        ablation_job,
        compared_with,
        failed_cells,
        missing_cells,
        require_ablation_folder,
        run_ablation,
    )
    from bitbrush.methods.recipe import Recipe
    from bitbrush.sources.early_checks import require_plan
    from bitbrush.sources.input_images import read_inputs
    from bitbrush.sources.prompts import too_long

    require_ablation_folder(output, markdown, model)
    shared: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale, "scheduler": scheduler}
    shared |= {"pipeline_arguments": pipeline_arguments, "num_prompts": num_prompts}
    options = model_options(revision, variant, config, loras)
    require_plan(model, options, Recipe().plan_with(shared))
    job = ablation_job(
        model,
        recipes=_recipes(methods, recipes),
        bits=_parts(bits),
        prompts=_listed(prompts),
        unseen_prompts=_listed(unseen_prompts),
        num_images=num_images,
        calibration_prompts=calibration,
        clip=clip,
        seed=seed,
        batch_size=batch_size,
        inputs=read_inputs(images, masks),
        runtime=runtime,
        dtype=dtype,
        memory=memory,
        generic=generic,
        options=options,
        **shared,
    )
    reference, protocol = compared_with(against, job), job.protocol
    announce(protocol.choice)
    warn(*too_long(job.pipe, [prompt for one in protocol.sets for prompt in protocol.prompts(one)]))
    note(_announcement(model, job.settings, protocol.num_images, [one.name for one in protocol.sets]))
    with resumable():
        document = run_ablation(
            job, output, against=reference, command=command_line(), markdown=markdown, progress=shown, tell=note
        )
    _print(document)
    for missing in missing_cells(job, output):
        note(f"{missing}: another process is at it, and will put it into the report")
    note(f"{output / REPORT}\nOpen it in a browser.")
    if failed := failed_cells(document):
        for problem in failed:
            warn(f"failed: {problem}")
        raise typer.Exit(1)


def _recipes(methods: str | None, recipes: Sequence[str] | None) -> list[str]:
    """Combines the recipes of both options; the default is all methods but paper."""
    from bitbrush.bench.experiments.ablate.recipes import USUAL_RECIPES

    named = _parts(methods) if methods is not None else [] if recipes else list(USUAL_RECIPES)
    return [*named, *(recipes or ())]


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _listed(sources: Sequence[str] | None) -> list[str]:
    """Lists sources, each given by itself or separated by commas."""
    return [part for one in sources or () for part in ([one] if Path(one).exists() else _parts(one))]


def _announcement(model: str, compared: "Sequence[Setting]", images: int, sets: Sequence[str]) -> str:
    names = ", ".join(dict.fromkeys(one.name for one in compared))
    bits = ", ".join(dict.fromkeys(str(one.bits) for one in compared))
    return f"{model}: {names} at {bits}; {images} held-out prompts of each of {', '.join(sets)}"


def _require_outputs(output: Path, markdown: Path | None, read: Sequence[str | Path | None]) -> None:
    require_output(output, read)
    if markdown is not None:
        require_file_output(markdown, read, option="--markdown")


def _print(document: dict[str, Any]) -> None:
    from bitbrush.bench.experiments.ablate.standing import headline, missing_text
    from bitbrush.bench.experiments.ablate.tables import bits_tables

    columns = {0: "PSNR, dB", 1: "median", 2: "latent MSE,\ngeometric"}
    columns |= {4: f"less\n{document['against']}'s", 5: "times\nits MSE"}
    for one in bits_tables(document):
        shown_figures = table(one.name, *columns.values())
        for row in one.rows:
            shown_figures.add_row(row.name, *("\n".join(row.cells[at] or "-") for at in columns))
        show(shown_figures)
        say("")
    say(" ".join([f"{headline(document)}.", missing_text(document)]).rstrip())
