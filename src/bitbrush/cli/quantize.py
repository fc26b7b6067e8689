"""``bitbrush quantize``."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitbrush.artifact.model_names import require_known
from bitbrush.cli.console import note, quiet_libraries, resumable, say, say_unbroken, show, table, warn
from bitbrush.cli.dry_run import print_plan
from bitbrush.cli.options import (
    Config,
    Device,
    Generic,
    Images,
    Loras,
    Masks,
    Overwrite,
    PipelineArguments,
    Revision,
    Variant,
    model_options,
)
from bitbrush.cli.progress import shown

if TYPE_CHECKING:
    import torch

    from bitbrush.artifact.models import ModelOptions
    from bitbrush.artifact.quantization import Quantization
    from bitbrush.methods.method import Job
    from bitbrush.methods.recipe import Recipe

OF_THE_MODEL = ("revision", "variant", "config", "loras")
NO_KEYS = (
    *("model", "output", "overwrite", "prompts", "recipe", "images", "masks", "generic", "device", "dry_run"),
    *OF_THE_MODEL,
)
"""Parameters of the command that are no keys of a recipe; all others are, under their name."""


def quantize(
    model: Annotated[
        str, typer.Argument(help="Bundled name (emoji-sd), local pipeline directory, .safetensors, or hub id.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory for the artifact.")],
    method: Annotated[
        str | None,
        typer.Option(help="best (default), pcr, paper, one-shot, ptq4dm, qdiffusion, smoothquant, dynamic or rtn."),
    ] = None,
    weights: Annotated[int | None, typer.Option(help="Weight bits, 2 to 8 [4].")] = None,
    activations: Annotated[int | None, typer.Option(help="Activation bits, 4 to 16 [8].")] = None,
    relax: Annotated[
        str | None,
        typer.Option(help="Steps with more activation bits, 0.8:1.0@10; auto:8.2: by measurement, that on average."),
    ] = None,
    weight_allocation: Annotated[
        str | None, typer.Option(help="uniform, or measured: weight bits by layer, --weights on average.")
    ] = None,
    rounding: Annotated[
        str | None, typer.Option(help="learned (default of best and pcr), adaround or nearest.")
    ] = None,
    smoothing: Annotated[
        str | None, typer.Option(help="Scales moved from inputs into weights: none or smoothquant.")
    ] = None,
    weight_range: Annotated[str | None, typer.Option(help="mse or min-max.")] = None,
    activation_range: Annotated[str | None, typer.Option(help="l4, mse, percentile or min-max.")] = None,
    step_sizes: Annotated[
        str | None,
        typer.Option(help="observed, or learned by gradients: where one range serves all steps."),
    ] = None,
    skip_inputs: Annotated[
        str | None, typer.Option(help="joint, or split: what reads a U-Net's skips as two layers.")
    ] = None,
    first_token: Annotated[
        str | None,
        typer.Option(help="quantized, or known: keys and values of a text's start token are full precision's."),
    ] = None,
    low_rank: Annotated[
        str | None,
        typer.Option(help="Rank of a branch beside every layer, in 16-bit activations, e.g. 16, or none."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Pattern of layer names to leave in floating point; repeatable.")
    ] = None,
    fine: Annotated[
        list[str] | None,
        typer.Option(help="Pattern of layer names for 8-bit weights and 16-bit activations; repeatable."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps to calibrate for [50].")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Guidance to calibrate for [7.5].")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Scheduler to calibrate for [the model's own].")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Calibration prompts: a file, one a line, or a bundled set.")
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(help="How many of them to use [16].")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Prompts per denoiser call [16].")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the calibration's noise [0].")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="TOML or JSON file with these keys; options come before it.")
    ] = None,
    pipeline_arguments: PipelineArguments = None,
    images: Images = None,
    masks: Masks = None,
    generic: Generic = False,
    revision: Revision = None,
    variant: Variant = None,
    config: Config = None,
    loras: Loras = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, its time, memory and disk, and end; writes nothing.")
    ] = False,
) -> None:
    """Quantize MODEL after training and save it as a pipeline folder of packed integers."""
    given = {key: value for key, value in locals().items() if key not in NO_KEYS and value is not None}
    require_known(model, revision)
    quiet_libraries()
    from bitbrush.artifact.machine import find_device
    from bitbrush.artifact.store import require_free

    require_free(output, overwrite=overwrite or dry_run)
    chosen, options = _recipe(recipe, given), model_options(revision, variant, config, loras)
    place = find_device(device)
    if dry_run and place.type != "cpu":
        raise ValueError(f"--dry-run reckons time and memory of the processor, not of {device}; leave --device out")
    _quantize(
        model, options, output, chosen, prompts, place, images=images, masks=masks, generic=generic, dry_run=dry_run
    )


def _quantize(
    model: str,
    options: "ModelOptions",
    output: Path,
    chosen: "Recipe",
    prompts: str | None,
    device: "torch.device",
    *,
    images: Path | None,
    masks: Path | None,
    generic: bool,
    dry_run: bool,
) -> None:
    from bitbrush.artifact.models import find_model, load_source
    from bitbrush.artifact.quantization import calibration_batches, carry_out, quantization_job
    from bitbrush.artifact.store import save
    from bitbrush.artifact.work import early_facts
    from bitbrush.bench.input_images import read_inputs
    from bitbrush.bench.prompts import calibration_prompts
    from bitbrush.runtime.cuda.package import has_card
    from bitbrush.timeline.disk import nearest_folder
    from bitbrush.timeline.journal import require_same_work, work_folder
    from bitbrush.timeline.ranks import ranks
    from bitbrush.timeline.spool import Spool

    find_model(model, options)
    if device.type == "cpu" and has_card():
        note("there is a card here: --device cuda computes on it")
    calibration = calibration_prompts(prompts, model)
    inputs, work = read_inputs(images, masks), work_folder(output)
    batches = calibration_batches(chosen, calibration, inputs)
    if not dry_run:
        require_same_work(work, early_facts(chosen, batches, device))
    pipe = load_source(model, options, spool=Spool(nearest_folder(output)), device=device)
    with ranks() as own, own.together():
        job = quantization_job(pipe, chosen, calibration, inputs=inputs, generic=generic, progress=shown, ranks=own)
        own.wait()  # until all are loaded, as what memory is left is looked at
        if own.leads:
            note(_announcement(model, chosen, own.world))
            _look_ahead(job, calibration, output, dry_run=dry_run)
        if dry_run:
            return
        with resumable():
            quantization = carry_out(job, work)
            if own.leads:
                save(quantization, output, base_model=model, options=options)
        if own.leads:
            shutil.rmtree(work)
            print_summary(quantization, output)


def _look_ahead(job: "Job", calibration: Sequence[str], output: Path, *, dry_run: bool) -> None:
    """Tells or refuses what is known before anything long starts."""
    from bitbrush.artifact.estimate import estimate_job, require_disk, require_room, short_on_card
    from bitbrush.bench.prompts import too_long
    from bitbrush.timeline.journal import Journal, work_folder

    for message in too_long(job.pipe, calibration[: job.recipe.num_prompts]):
        warn(message)
    kept = Journal(work_folder(output))
    estimate, walk = estimate_job(job)
    if dry_run:
        print_plan(job, estimate, walk, output)
        return
    if job.pipe.device.type == "cpu":
        require_room(estimate, output, kept=kept.size, processes=job.ranks.here)
    else:
        require_disk(estimate, output, kept=kept.size)
        if short := short_on_card(estimate, job.pipe.device):
            warn(short)
    if done := kept.pieces():
        note(f"going on with the {len(done)} pieces of work that {kept.folder} holds")


def _recipe(file: Path | None, given: dict[str, Any]) -> "Recipe":
    """The method's defaults, then the recipe file, then the options."""
    from bitbrush.methods import DEFAULT_METHOD, METHODS
    from bitbrush.methods.recipe import read_recipe

    keys = {**(read_recipe(file) if file else {}), **given}
    name = keys.get("method", DEFAULT_METHOD)
    if name not in METHODS:
        raise ValueError(f"method is {name!r}; known are {', '.join(METHODS)}")
    return METHODS[name].recipe(keys)


def _announcement(model: str, recipe: "Recipe", processes: int) -> str:
    relax = f", relaxed {recipe.relax}" if recipe.relax else ""
    measured = ", measured by layer" if recipe.weight_allocation == "measured" else ""
    return (
        f"{model}: {recipe.method}, {recipe.weights}-bit weights{measured} ({recipe.rounding} rounding), "
        f"{recipe.activations}-bit activations{relax}; {recipe.steps} steps, guidance {recipe.guidance_scale:g}, "
        f"{recipe.num_prompts} prompts{f' shared by {processes} processes' if processes > 1 else ''}"
    )


def print_summary(quantization: "Quantization", output: Path) -> None:
    """What was made, what it cost, and what to do with it."""
    from bitbrush.artifact.sizes import denoiser_sizes
    from bitbrush.artifact.store import read_manifest

    manifest = read_manifest(output)
    costs = table("phase", "seconds", "denoiser calls per batch", "peak MiB")
    for phase, cost in quantization.costs.items():
        costs.add_row(
            phase.replace("_", " "),
            f"{cost.seconds:.1f}",
            str(cost.denoiser_calls_per_batch or "-"),
            f"{cost.peak_mib:.0f}",
        )
    layers = manifest["layers"]
    left = [layer for layer in layers if layer["excluded"] is not None]
    show(costs)
    say(
        f"\n{len(layers) - len(left)} of {len(layers)} Conv2d and Linear layers quantized"
        f"{f', {len(left)} left in floating point as the recipe says' if left else ''}; "
        f"{quantization.average_activation_bits:.2f} activation bits on average\n"
        f"denoiser: {denoiser_sizes(manifest).text}"
    )
    say_unbroken(f'saved: {output}\nnext: bitbrush generate {output} "a prompt" -o images')
