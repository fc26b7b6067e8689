"""Command ``bitbrush plans``."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitbrush.cli.console import note, quiet_libraries, resumable, say, show, table, warn
from bitbrush.cli.execution import DtypeOption, MemoryOption, RuntimeOption, chosen, tell_executions
from bitbrush.cli.options import (
    BatchSize,
    Config,
    Images,
    Loras,
    Masks,
    Revision,
    Variant,
    command_line,
    lora_files,
    model_options,
)
from bitbrush.cli.outputs import require_output
from bitbrush.cli.progress import shown
from bitbrush.numerics.limits import MAX_COUNT, MAX_SEED, MAX_STEPS
from bitbrush.sources.model_names import require_known

if TYPE_CHECKING:
    from bitbrush.bench.experiments.plans.figures import CellFigures
    from bitbrush.bench.experiments.plans.plan_list import Plan
    from bitbrush.bench.metrics.interval import Interval


def plans(
    model: Annotated[str, typer.Argument(help="Full-precision model: bundled name, directory or hub id.")],
    artifact: Annotated[Path, typer.Argument(metavar="DIR", help="What `bitbrush quantize` made of it.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory for results (JSON, CSV) and report.html.")],
    steps: Annotated[
        str | None, typer.Option(help="Numbers of denoising steps, e.g. 10,20,50 [so; 1,2,4 of few-step models].")
    ] = None,
    schedulers: Annotated[
        str | None, typer.Option(help="Schedulers, e.g. pndm,ddim,euler [all that fit and add no noise].")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Guidance [the artifact's].")] = None,
    prompts: Annotated[
        list[str] | None, typer.Option(help="Held-out prompts: a file, one a line, or a bundled set; repeatable.")
    ] = None,
    num_prompts: Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="How many of each set to use.")] = 16,
    no_recalibration: Annotated[
        bool, typer.Option("--no-recalibration", help="Measure against full precision alone: half the time.")
    ] = False,
    calibration: Annotated[
        str | None, typer.Option("--calibration-prompts", help="Prompts to recalibrate with: a file or a bundled set.")
    ] = None,
    images: Images = None,
    masks: Masks = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the initial noise.")] = 1,
    batch_size: BatchSize = 16,
    runtime: RuntimeOption = "auto",
    dtype: DtypeOption = None,
    memory: MemoryOption = "expanded",
    revision: Revision = None,
    variant: Variant = None,
    config: Config = None,
    loras: Loras = None,
) -> None:
    """Run an artifact by other schedulers and steps than it was calibrated for, against recalibrating for each."""
    require_output(output, [model, artifact, config, images, masks, *lora_files(loras)])
    require_known(model, revision)
    quiet_libraries()
    from bitbrush.artifact.manifest import read_manifest
    from bitbrush.bench.experiments.plans.measure import HeldOutPrompts, Recalibration
    from bitbrush.bench.experiments.plans.plan_list import list_plans
    from bitbrush.bench.experiments.plans.run import (
        REPORT,
        open_plans,
        require_plans_folder,
        run_plans,
    )
    from bitbrush.bench.experiments.protocol import plan_for
    from bitbrush.bench.pages.prompt_sets import counted
    from bitbrush.session.outputs import claimed
    from bitbrush.sources.early_checks import require_plan
    from bitbrush.sources.input_images import read_inputs
    from bitbrush.sources.models import find_model
    from bitbrush.sources.prompts import calibration_prompts, held_out_prompts, too_long

    require_plans_folder(output)
    counts, names = _numbers(steps), [one.strip() for one in (schedulers or "").split(",") if one.strip()]
    options = model_options(revision, variant, config, loras)
    find_model(model, options)
    read_manifest(artifact)
    base = plan_for([str(artifact)], {"guidance_scale": guidance_scale})
    for name in names or (base.scheduler,):
        for count in counts or [base.steps]:
            require_plan(model, options, replace(base, scheduler=name, steps=count))
    inputs = read_inputs(images, masks)
    sets = {name: texts[:num_prompts] for name, texts in held_out_prompts(prompts or [], model).items()}
    recalibration = None
    if not no_recalibration:
        own = calibration_prompts(calibration, model, option="--calibration-prompts (or give --no-recalibration)")
        recalibration = Recalibration(own, inputs)
    held_out = HeldOutPrompts(sets, seed, batch_size, inputs)
    choice = chosen(runtime, dtype, memory)
    with claimed(output):
        job = open_plans(model, artifact, held_out, choice, options=options, recalibration=recalibration)
        tell_executions(job.quantized)
        warn(*job.subject.notes, *too_long(job.full, held_out.texts))
        plans = list_plans(job.full, base, names, counts, held_out.batches[0])
        note(_announcement(model, artifact, plans, len(held_out.texts), job.recalibration is not None))
        facts = {
            "Prompts": "\n".join(counted(name, len(texts)) for name, texts in sets.items()),
            "Noise": f"each image's own, from seed {seed} and prompt; the same for both of a pair",
        }
        with resumable():
            figures = run_plans(job, plans, output, facts, command=command_line(), progress=shown)
    _print(figures)
    note(f"{output / REPORT}\nOpen it in a browser.")


AXES = ("steps", "scheduler")
APPLY = {
    "guidance_scale": "guidance_scale",
    "prompts": "prompts",
    "num_images": "num_prompts",
    "batch_size": "batch_size",
    "runtime": "runtime",
    "dtype": "dtype",
    "memory": "memory",
    "images": "images",
    "masks": "masks",
    "revision": "revision",
    "variant": "variant",
    "config": "config",
    "loras": "loras",
}
"""Options of ``bitbrush bench`` that `plans` shares, with their names there."""


def plans_of_bench(axes: str, model: str, candidates: Sequence[str], output: Path, given: Mapping[str, object]) -> None:
    """Runs ``bitbrush bench --plans AXES``: a table over these axes.

    Args:
        axes: Names from AXES, separated by commas; the other axis keeps the artifact's plan or its option.
        model: Full-precision model.
        candidates: One artifact.
        output: Directory of the report.
        given: Options of ``bench`` that the user set, by name.

    Raises:
        ValueError: An axis is unknown, there are several artifacts, or `plans` lacks an option.
    """
    from bitbrush.artifact.manifest import read_manifest

    named = [axis.strip() for axis in axes.split(",")]
    if unknown := [axis for axis in named if axis not in AXES]:
        raise ValueError(f"plans is {axes!r}; {unknown[0]!r} is none of its axes, which are {','.join(AXES)}")
    if len(candidates) > 1:
        raise ValueError(
            f"--plans takes one artifact, not {len(candidates)}; run it for each, with an output of its own"
        )
    others = [name for name in given if name not in APPLY and name not in (*AXES, "plans")]
    if others or any(axis in given for axis in named):
        name = next(iter(others), named[0]).replace("_", "-")
        raise ValueError(f"--{name} does not apply to --plans {axes}; `bitbrush plans` has all options of this table")
    manifest = read_manifest(candidates[0])
    fixed = {"steps": manifest["recipe"]["steps"], "scheduler": manifest["plan"]["scheduler"]}
    kept = {axis: str(given.get(axis, fixed[axis])) for axis in AXES if axis not in named}
    options: dict[str, Any] = {APPLY[name]: value for name, value in given.items() if name in APPLY}
    plans(model, Path(candidates[0]), output, kept.get("steps"), kept.get("scheduler"), **options)


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ValueError(f"steps is {text!r}; expected whole numbers with commas between, e.g. 10,20,50") from None
    if len(set(numbers)) < len(numbers) or not all(1 <= one <= MAX_STEPS for one in numbers):
        raise ValueError(f"steps is {text!r}; they are numbers from 1 to {MAX_STEPS}, each once")
    return numbers


def _announcement(model: str, artifact: Path, plans: "Sequence[Plan]", images: int, recalibrates: bool) -> str:
    plan = plans[0].plan
    names = ", ".join(dict.fromkeys(str(one.plan.scheduler) for one in plans))
    steps = ", ".join(dict.fromkeys(str(one.plan.steps) for one in plans))
    again = "recalibrated for each" if recalibrates else "not recalibrated"
    return (
        f"{artifact} against {model}: {names} with {steps} steps, guidance {plan.guidance_scale:g}, "
        f"{images} images each, {again}"
    )


def _print(figures: "Sequence[CellFigures]") -> None:
    from bitbrush.bench.experiments.plans.figures import headline

    columns = ["scheduler", "steps", "latent\nMSE", "PSNR"]
    recalibrated = any(one.recalibrated for one in figures)
    if recalibrated:
        columns += ["recal.\nMSE", "recal.\nPSNR", "ratio of\nmedian MSEs", "of\nmeans"]
    shown_figures = table(*columns)
    for one in figures:
        shown_figures.add_row(*_row(one), *(_again(one) if recalibrated else ()))
    show(shown_figures)
    explanation = "; recal.: the artifact recalibrated for the plan" if recalibrated else ""
    say(f"\nMSE and PSNR to full precision, medians over the images{explanation}")
    say(headline(figures))
    if any(one.is_calibrated for one in figures):
        say("*: the plan that the artifact is calibrated for")
    for one in figures:
        if one.problem:
            warn(f"{one.planned.name} was not measured: {one.problem}")


def _row(one: "CellFigures") -> list[str]:
    name = f"{one.planned.plan.scheduler}{' *' if one.is_calibrated else ''}"
    own = one.artifact
    steps = str(one.planned.plan.steps)
    if own is None:
        return [name, steps, "-", "-"]
    return [name, steps, _digits(own.latent_mse.median), f"{own.psnr.median.mean:.1f}"]


def _again(one: "CellFigures") -> list[str]:
    again, ratios = one.recalibrated, one.ratios
    errors = [_digits(again.latent_mse.median), f"{again.psnr.median.mean:.1f}"] if again else ["-", "-"]
    if ratios is None:
        return [*errors, "-", "-"]
    middle = ratios.of_medians
    return [*errors, f"{middle.mean:.2f} ({middle.low:.2f}-{middle.high:.2f})", f"{ratios.of_means.mean:.2f}"]


def _digits(interval: "Interval") -> str:
    from bitbrush.bench.pages.number_format import format_number

    return format_number(interval.mean, digits=3)
