"""Command ``bitbrush quantize``."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    Revision,
    Variant,
    lora_files,
    model_options,
)
from bitbrush.cli.outputs import require_artifact_output
from bitbrush.cli.progress import shown
from bitbrush.cli.recipe_options import takes_recipe_keys
from bitbrush.methods import DEFAULT_METHOD, METHODS
from bitbrush.methods.recipe import read_recipe
from bitbrush.session.launch import launched_ranks
from bitbrush.sources.model_names import require_known

if TYPE_CHECKING:
    import torch

    from bitbrush.methods.recipe import Recipe
    from bitbrush.methods.state import QuantizationState
    from bitbrush.quantization.quantize import Quantization
    from bitbrush.sources.models import ModelOptions


@takes_recipe_keys()
def quantize(
    model: Annotated[
        str, typer.Argument(help="Bundled name (emoji-sd), local pipeline directory, .safetensors, or hub id.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Directory for the artifact, or one file: NAME.safetensors.")
    ],
    keys: dict[str, Any],
    prompts: Annotated[
        str | None, typer.Option(help="Calibration prompts: a file, one a line, or a bundled set.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="TOML or JSON file with these keys; options come before it.")
    ] = None,
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
        bool, typer.Option("--dry-run", help="Print the plan, bounds on memory and disk, and end; writes nothing.")
    ] = False,
) -> None:
    """Quantize MODEL after training and save it as a pipeline folder of packed integers."""
    require_artifact_output(output, [model, prompts, recipe, config, images, masks, *lora_files(loras)])
    launched_ranks()
    require_known(model, revision)
    quiet_libraries()
    from bitbrush.artifact.store import require_free
    from bitbrush.session.machine import find_device

    require_free(output)
    chosen, options = _recipe(recipe, keys), model_options(revision, variant, config, loras)
    place = find_device(device)
    if dry_run and place.type != "cpu":
        raise ValueError(f"--dry-run estimates memory of the CPU, not of {device}; leave --device out")
    _quantize(
        model,
        options,
        output,
        chosen,
        prompts,
        place,
        images=images,
        masks=masks,
        generic=generic,
        overwrite=overwrite,
        dry_run=dry_run,
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
    overwrite: bool,
    dry_run: bool,
) -> None:
    from bitbrush.artifact.store import require_free, result_file, save
    from bitbrush.quantization.quantize import calibration_batches, prepare, run
    from bitbrush.quantization.work import early_facts
    from bitbrush.runtime.cuda.package import has_gpu
    from bitbrush.session.disk import nearest_folder
    from bitbrush.session.journal import remove_saved, require_same_work
    from bitbrush.session.offload import Offload
    from bitbrush.session.outputs import claimed, work_folder
    from bitbrush.session.ranks import ranks
    from bitbrush.sources.early_checks import require_plan
    from bitbrush.sources.input_images import read_inputs
    from bitbrush.sources.models import find_model, load_source
    from bitbrush.sources.prompts import calibration_prompts

    find_model(model, options)
    require_plan(model, options, chosen.plan)
    if device.type == "cpu" and has_gpu():
        note("there is a card here: --device cuda computes on it")
    calibration = calibration_prompts(prompts, model)
    inputs, work = read_inputs(images, masks), work_folder(output)
    batches = calibration_batches(chosen, calibration, inputs)
    with ranks() as own, nullcontext() if dry_run else claimed(output, own), own.together():
        if own.leads and not dry_run:
            remove_saved(work, result_file(output))
        require_free(output, overwrite=overwrite or dry_run)
        if not dry_run:
            require_same_work(work, early_facts(chosen, batches, device))
        pipe = load_source(model, options, offload=Offload(nearest_folder(output) if dry_run else work), device=device)
        state = prepare(pipe, chosen, calibration, inputs=inputs, generic=generic, progress=shown, ranks=own)
        own.wait()  # until all ranks have loaded, since the estimate reads the memory that is left
        if own.leads:
            note(_announcement(model, chosen, own.world))
            _look_ahead(state, calibration, output, dry_run=dry_run)
        if dry_run:
            return
        with resumable():
            quantization = run(state, work)
            if own.leads:
                save(quantization, output, base_model=model, options=options, work=work)
        if own.leads:
            print_summary(quantization, output)


def _look_ahead(state: "QuantizationState", calibration: Sequence[str], output: Path, *, dry_run: bool) -> None:
    """Reports or refuses what is known before long work starts."""
    from bitbrush.quantization.estimate import estimate, require_disk, require_memory, short_on_gpu
    from bitbrush.session.journal import Journal
    from bitbrush.session.outputs import work_folder
    from bitbrush.sources.prompts import too_long

    warn(*too_long(state.pipe, calibration[: state.recipe.num_prompts]))
    kept = Journal(work_folder(output))
    planned = estimate(state)
    if dry_run:
        print_plan(state, planned, output)
        return
    if state.pipe.device.type == "cpu":
        require_memory(planned, output, journal_bytes=kept.size, processes=state.session.ranks.here)
    else:
        require_disk(planned, output, journal_bytes=kept.size)
        if short := short_on_gpu(planned, state.pipe.device):
            warn(short)
    if done := kept.pieces():
        note(f"going on with the {len(done)} pieces of work that {kept.folder} holds")


def _recipe(file: Path | None, given: dict[str, Any]) -> "Recipe":
    """Merges the method's defaults, the recipe file and the options, in increasing precedence."""
    keys = {**(read_recipe(file) if file else {}), **given}
    return METHODS.named(keys.get("method", DEFAULT_METHOD)).recipe(keys)


def _announcement(model: str, recipe: "Recipe", processes: int) -> str:
    relax = f", relaxed {recipe.relax}" if recipe.relax else ""
    measured = ", measured by layer" if recipe.weight_allocation == "measured" else ""
    shared = f" shared by {processes} processes" if processes > 1 else ""
    beside = f"; also {', '.join(recipe.networks[1:])}" if len(recipe.networks) > 1 else ""
    return (
        f"{model}: {recipe.method}, {recipe.weights}-bit weights{measured} ({recipe.rounding} rounding), "
        f"{recipe.activations}-bit activations{relax}{beside}; {recipe.steps} steps, "
        f"guidance {recipe.guidance_scale:g}, {recipe.num_prompts} prompts{shared}"
    )


def print_summary(quantization: "Quantization", output: Path) -> None:
    """Prints the result, its cost and the next command."""
    from bitbrush.artifact.manifest import manifest_digest, read_manifest
    from bitbrush.artifact.sizes import denoiser_sizes, network_sizes

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
    for name, sizes in network_sizes(manifest).items():
        say(f"{name}: {sizes.text}")
    say_unbroken(f"saved: {output}\nsha256: {manifest_digest(output)}")
    say_unbroken(f'next: bitbrush generate {output} "a prompt" -o images')
