"""Command ``bitbrush generate``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitbrush.cli.console import note, quiet_libraries, say_unbroken, warn
from bitbrush.cli.execution import DtypeOption, MemoryOption, RuntimeOption, UnquantizedOption, chosen, tell_executions
from bitbrush.cli.options import ImageFile, MaskFile, PipelineArguments
from bitbrush.cli.outputs import require_output
from bitbrush.cli.progress import shown
from bitbrush.numerics.limits import MAX_COUNT, MAX_SEED
from bitbrush.sources.model_names import require_known

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from bitbrush.timeline.plan import SamplingPlan

MAX_IMAGES = 100_000
"""Images per prompt; a later run goes on with further seeds."""


def generate(
    model: Annotated[str, typer.Argument(metavar="DIR", help="Artifact, or any full-precision model.")],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="One or more prompts.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory for PNGs and images.json.")],
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Image j of a prompt starts from noise of seed + j.")
    ] = 0,
    num_images: Annotated[int, typer.Option(min=1, max=MAX_IMAGES, help="Images per prompt.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Denoising steps [as calibrated].")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Guidance [as calibrated].")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="pndm, ddim, euler, heun, dpmpp_2m, unipc ... or a diffusers class [the model's]."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=MAX_COUNT, help="Images per denoiser call; changes nothing but speed.")
    ] = 8,
    runtime: RuntimeOption = "auto",
    dtype: DtypeOption = None,
    memory: MemoryOption = "expanded",
    unquantized: UnquantizedOption = "float32",
    pipeline_arguments: PipelineArguments = None,
    image: ImageFile = None,
    mask: MaskFile = None,
) -> None:
    """Generate images from a quantized (or a full-precision) pipeline."""
    require_output(output, [model, image, mask])
    if seed + num_images - 1 > MAX_SEED:
        raise ValueError(f"seed is {seed}, and {num_images} images need seeds up to {MAX_SEED}; lower --seed")
    require_known(model)
    quiet_libraries()
    from bitbrush.artifact.manifest import artifact_folder, is_artifact
    from bitbrush.artifact.store import load_with
    from bitbrush.bench.images.gallery import require_image_folder, write_images
    from bitbrush.sources.early_checks import require_plan, require_plan_of_folder
    from bitbrush.sources.input_images import read_image
    from bitbrush.sources.models import ModelOptions
    from bitbrush.sources.prompt_texts import prompt_texts
    from bitbrush.sources.prompts import too_long
    from bitbrush.sources.schedulers import with_scheduler

    plan = _plan(model, steps, guidance_scale, scheduler, pipeline_arguments or [])
    require_image_folder(output)
    inputs = {name: read_image(file) for name, file in (("image", image), ("mask_image", mask)) if file}
    if any(not prompt.strip() for prompt in prompt_texts(prompts)):
        raise ValueError("a prompt is empty; write what the image should show")
    artifact = is_artifact(model)
    if artifact:
        require_plan_of_folder(model if Path(model).is_file() else artifact_folder(model), plan)
    else:
        require_plan(model, ModelOptions(), plan)
    loaded = (
        load_with(model, chosen(runtime, dtype, memory, unquantized)) if artifact else _full_precision(model, runtime)
    )
    executor = tell_executions(loaded)
    pipe = with_scheduler(loaded, plan.scheduler)
    warn(*too_long(pipe, prompts))
    used = type(pipe.scheduler).__name__
    note(f"{model}: {used}, {plan.steps} steps, guidance {plan.guidance_scale:g}")
    facts = {"model": model, "steps": plan.steps, "guidance_scale": plan.guidance_scale, "scheduler": used}
    facts["runtime"] = executor
    files = write_images(
        pipe,
        prompts,
        plan,
        output,
        images_per_prompt=num_images,
        seed=seed,
        batch_size=batch_size,
        facts=facts,
        inputs=inputs,
        progress=shown,
    )
    for file in list(files):
        if file.constant:
            warn(f"{file.path} (prompt {file.prompt!r}, seed {file.seed}) is all of one colour")
        say_unbroken(str(file.path))


def _full_precision(model: str, runtime: str) -> "DiffusionPipeline":
    """Loads a full-precision pipeline, on the GPU if the cuda runtime is requested by name."""
    from bitbrush.runtime.choose import RuntimeName, choose_runtime
    from bitbrush.sources.models import load_full_precision

    pipe = load_full_precision(model)
    return choose_runtime(RuntimeName.CUDA).place(pipe) if runtime == RuntimeName.CUDA else pipe


def _plan(
    model: str, steps: int | None, guidance_scale: float | None, scheduler: str | None, arguments: list[str]
) -> "SamplingPlan":
    """Builds the plan from the options, then the artifact's recipe; the pipeline already has its scheduler."""
    from bitbrush.artifact.manifest import is_artifact, read_manifest
    from bitbrush.methods.recipe import Recipe

    recipe = Recipe().updated(read_manifest(model)["recipe"]) if is_artifact(model) else Recipe()
    given = {"steps": steps, "guidance_scale": guidance_scale, "scheduler": scheduler, "pipeline_arguments": arguments}
    return replace(recipe, scheduler=None).plan_with(given)
