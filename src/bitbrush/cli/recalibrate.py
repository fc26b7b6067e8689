"""Command ``bitbrush recalibrate``."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from bitbrush.cli.console import note, quiet_libraries, warn
from bitbrush.cli.options import Device, Images, Masks, Overwrite
from bitbrush.cli.outputs import require_artifact_output, resolved
from bitbrush.cli.progress import shown
from bitbrush.cli.quantize import print_summary
from bitbrush.cli.recipe_options import RECALIBRATED, takes_recipe_keys
from bitbrush.session.launch import launched_ranks


@takes_recipe_keys(RECALIBRATED)
def recalibrate(
    artifact: Annotated[Path, typer.Argument(metavar="DIR", help="What `bitbrush quantize` made.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory for the new artifact.")],
    keys: dict[str, Any],
    prompts: Annotated[
        str | None, typer.Option(help="Calibration prompts: a file, one a line, or a bundled set.")
    ] = None,
    images: Images = None,
    masks: Masks = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Find an artifact's activation ranges anew, for another plan: minutes, and no full-precision model."""
    read = [prompts, images, masks]
    require_artifact_output(output, read if resolved(output) == resolved(artifact) else [artifact, *read])
    launched_ranks()
    quiet_libraries()
    from bitbrush.artifact.manifest import artifact_folder, read_manifest
    from bitbrush.artifact.recalibration import recalibrate as run
    from bitbrush.artifact.store import require_free, save
    from bitbrush.methods.recipe import Recipe
    from bitbrush.session.disk import require_space
    from bitbrush.session.machine import find_device
    from bitbrush.session.outputs import claimed
    from bitbrush.session.ranks import ranks
    from bitbrush.sources.early_checks import require_plan_of_folder
    from bitbrush.sources.input_images import read_inputs
    from bitbrush.sources.prompts import calibration_prompts, too_long

    manifest = read_manifest(artifact)
    recipe = Recipe().updated(manifest["recipe"]).updated(keys)
    require_free(output)
    files = [artifact, *artifact.rglob("*")]
    require_space(output, sum(path.stat().st_size for path in files if path.is_file()))
    place = find_device(device)
    source = artifact if artifact.is_file() else artifact_folder(artifact)
    require_plan_of_folder(source, replace(recipe.plan, scheduler=keys.get("scheduler")))
    calibration, inputs = calibration_prompts(prompts, manifest["base_model"]), read_inputs(images, masks)
    with ranks() as own, claimed(output, own):
        require_free(output, overwrite=overwrite)
        if own.leads:
            note(
                f"{artifact}: {recipe.name}, for {recipe.scheduler or manifest['plan']['scheduler']}, {recipe.steps} "
                f"steps, guidance {recipe.guidance_scale:g}, {recipe.num_prompts} prompts"
            )
        made = run(artifact, keys, calibration, inputs=inputs, device=place, progress=shown)
        if own.leads:
            warn(*too_long(made.source, calibration[: recipe.num_prompts]))
            save(made, output)
            print_summary(made, output)
