"""``bitbrush recalibrate``."""

from pathlib import Path
from typing import Annotated

import typer

from bitbrush.cli.console import note, quiet_libraries, warn
from bitbrush.cli.options import Device, Images, Masks, Overwrite, PipelineArguments
from bitbrush.cli.progress import shown
from bitbrush.cli.quantize import print_summary

NO_KEYS = ("artifact", "output", "overwrite", "prompts", "images", "masks", "device")


def recalibrate(
    artifact: Annotated[Path, typer.Argument(metavar="DIR", help="What `bitbrush quantize` made.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory for the new artifact.")],
    steps: Annotated[int | None, typer.Option(help="Denoising steps [as before].")] = None,
    scheduler: Annotated[str | None, typer.Option(help="pndm, ddim, euler, dpmpp_2m ... [as before].")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Guidance [as before].")] = None,
    activations: Annotated[int | None, typer.Option(help="Activation bits, 4 to 16 [as before].")] = None,
    relax: Annotated[str | None, typer.Option(help="Steps with more bits: 0.8:1.0@10, or none [as before].")] = None,
    activation_range: Annotated[str | None, typer.Option(help="l4, mse, percentile or min-max [as before].")] = None,
    pipeline_arguments: PipelineArguments = None,
    prompts: Annotated[
        str | None, typer.Option(help="Calibration prompts: a file, one a line, or a bundled set.")
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(help="How many of them to use [as before].")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Prompts per denoiser call [as before].")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the calibration's noise [as before].")] = None,
    images: Images = None,
    masks: Masks = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Find an artifact's activation ranges anew, for another plan: minutes, and no full-precision model."""
    keys = {key: value for key, value in locals().items() if key not in NO_KEYS and value is not None}
    quiet_libraries()
    from bitbrush.artifact.machine import find_device
    from bitbrush.artifact.recalibration import recalibrate as run
    from bitbrush.artifact.store import read_manifest, require_free, save
    from bitbrush.bench.input_images import read_inputs
    from bitbrush.bench.prompts import calibration_prompts, too_long
    from bitbrush.methods.recipe import Recipe
    from bitbrush.timeline.disk import require_space
    from bitbrush.timeline.ranks import ranks

    manifest = read_manifest(artifact)
    recipe = Recipe().updated(manifest["recipe"]).updated(keys)
    require_free(output, overwrite=overwrite)
    require_space(output, sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file()))
    place = find_device(device)
    calibration = calibration_prompts(prompts, manifest["base_model"])
    with ranks() as own:
        if own.leads:
            note(
                f"{artifact}: {recipe.name}, for {recipe.scheduler or manifest['plan']['scheduler']}, {recipe.steps} "
                f"steps, guidance {recipe.guidance_scale:g}, {recipe.num_prompts} prompts"
            )
        made = run(artifact, keys, calibration, inputs=read_inputs(images, masks), device=place, progress=shown)
        if own.leads:
            for message in too_long(made.source, calibration[: recipe.num_prompts]):
                warn(message)
            save(made, output)
            print_summary(made, output)
