"""Command ``bitbrush compare``."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitbrush.cli.console import note, quiet_libraries, say, show, table, warn
from bitbrush.cli.execution import DtypeOption, MemoryOption, RuntimeOption, chosen, tell_executions
from bitbrush.cli.options import (
    BatchSize,
    Config,
    Images,
    Loras,
    Masks,
    PipelineArguments,
    Revision,
    Variant,
    command_line,
    model_options,
)
from bitbrush.cli.progress import shown
from bitbrush.numerics.limits import MAX_COUNT, MAX_SEED
from bitbrush.sources.model_names import require_known

if TYPE_CHECKING:
    from bitbrush.bench.experiments.comparison import Comparison
    from bitbrush.bench.metrics.interval import Interval


def compare(
    model: Annotated[str, typer.Argument(help="Full-precision model: bundled name, directory or hub id.")],
    artifact: Annotated[Path, typer.Argument(metavar="DIR", help="What `bitbrush quantize` made of it.")],
    prompts: Annotated[
        list[str] | None, typer.Option(help="Prompts: a file, one a line, or a bundled set; repeatable.")
    ] = None,
    num_prompts: Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="How many of each set to use.")] = 16,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the initial noise.")] = 1,
    batch_size: BatchSize = 16,
    runtime: RuntimeOption = "auto",
    dtype: DtypeOption = None,
    memory: MemoryOption = "expanded",
    pipeline_arguments: PipelineArguments = None,
    images: Images = None,
    masks: Masks = None,
    revision: Revision = None,
    variant: Variant = None,
    config: Config = None,
    loras: Loras = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Compare an artifact with its full-precision model, pair by pair: PSNR, SSIM, image and latent MSE."""
    require_known(model, revision)
    quiet_libraries()
    from bitbrush.artifact.manifest import read_manifest
    from bitbrush.artifact.origin import require_origin
    from bitbrush.artifact.sizes import denoiser_sizes
    from bitbrush.artifact.store import load_with
    from bitbrush.bench.experiments.candidates import require_alike
    from bitbrush.bench.experiments.comparison import compare as run
    from bitbrush.bench.experiments.protocol import plan_entries
    from bitbrush.methods.recipe import Recipe
    from bitbrush.sources.early_checks import require_plan
    from bitbrush.sources.identity import model_digest
    from bitbrush.sources.input_images import read_inputs
    from bitbrush.sources.models import find_model, load_full_precision
    from bitbrush.sources.prompts import held_out_prompts, too_long
    from bitbrush.sources.schedulers import with_scheduler

    manifest = read_manifest(artifact)
    recipe = Recipe().updated(manifest["recipe"])
    plan = recipe.plan_with({"pipeline_arguments": pipeline_arguments})
    options = model_options(revision, variant, config, loras)
    find_model(model, options)
    require_plan(model, options, replace(plan, scheduler=recipe.scheduler))
    inputs = read_inputs(images, masks)
    sets = {name: texts[:num_prompts] for name, texts in held_out_prompts(prompts or [], model).items()}
    choice = chosen(runtime, dtype, memory)
    full, candidate = load_full_precision(model, options), load_with(artifact, choice)
    require_alike(full, candidate)
    doubt = require_origin(artifact, manifest, model, options, model_digest(full))
    if doubt is not None:
        warn(doubt)
    full = choice.place(with_scheduler(full, recipe.scheduler))
    executor = tell_executions(candidate)
    warn(*too_long(full, [prompt for texts in sets.values() for prompt in texts]))
    sizes = denoiser_sizes(manifest)
    note(f"{model} against {artifact} ({recipe.name}): {recipe.steps} steps, guidance {recipe.guidance_scale:g}")
    compared = run(full, candidate, sets, plan, inputs=inputs, seed=seed, batch_size=batch_size, progress=shown)
    if as_json:
        facts = {"artifact": str(artifact), "recipe": recipe.to_dict(), "denoiser_bytes": asdict(sizes)}
        protocol = {
            "model": model,
            "model_options": options.facts(),
            **plan_entries(full, plan),
            "seed": seed,
            "batch_size": batch_size,
            "execution": executor,
            "prompt_sets": [{"name": name, "prompts": len(texts)} for name, texts in sets.items()],
        }
        print(json.dumps(_document(compared, facts, protocol), indent=1))
    else:
        _print(compared, recipe.name)
        say(f"denoiser: {sizes.text}")


def _document(compared: "dict[str, Comparison]", facts: dict[str, Any], protocol: dict[str, Any]) -> dict[str, Any]:
    from bitbrush.bench.experiments.results import results_document

    sets = {
        name: {
            "candidate": {metric: asdict(interval) for metric, interval in one.candidate.items()},
            "other_seed": {metric: asdict(interval) for metric, interval in one.other_seed.items()},
            "latent_mse_by_step": one.latent_mse_by_step.tolist(),
        }
        for name, one in compared.items()
    }
    command = command_line()
    return results_document("compare", command=command, protocol=protocol, content={**facts, "sets": sets})


def _print(compared: "dict[str, Comparison]", name: str) -> None:
    for style, one in compared.items():
        pairs = next(iter(one.candidate.values())).n
        figures = table("mean (95 % interval)", name, "another seed", title=f"{style}, {pairs} pairs")
        for metric, other in one.other_seed.items():
            own = one.candidate.get(metric)  # an error of 0 has no geometric mean
            figures.add_row(metric, _text(own) if own else "-", _text(other))
        show(figures)
        say("")
    say("another seed: full precision against itself from other noise, as far apart as two right images are")


def _text(interval: "Interval") -> str:
    from bitbrush.bench.pages.number_format import format_interval

    mean, between = format_interval(interval)
    return f"{mean} ({between})" if between else mean
