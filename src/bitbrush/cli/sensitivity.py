"""Command ``bitbrush sensitivity``."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitbrush.bench.networks import BUNDLED_CLIP, USUAL_CLIP
from bitbrush.cli.console import note, quiet_libraries, resumable, say, warn
from bitbrush.cli.options import (
    BatchSize,
    Config,
    Device,
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
from bitbrush.cli.outputs import require_output
from bitbrush.cli.progress import shown
from bitbrush.numerics.limits import MAX_COUNT, MAX_SEED, MAX_STEPS
from bitbrush.sources.model_names import require_known

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from diffusers import DiffusionPipeline

    from bitbrush.bench.experiments.sensitivity.analysis import Recommendation, StepSensitivity
    from bitbrush.session.journal import Journal
    from bitbrush.sources.models import ModelOptions
    from bitbrush.timeline.plan import SamplingPlan
    from bitbrush.timeline.trajectory import PromptBatch

    Measure = Callable[..., list[StepSensitivity]]


def sensitivity(
    model: Annotated[str, typer.Argument(help="Full-precision model: bundled name, directory or hub id.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory for results (JSON, CSV) and report.html.")],
    activations: Annotated[int, typer.Option(help="Bits of the disturbed step's activations, 4 to 16.")] = 8,
    noise: Annotated[
        float | None,
        typer.Option(help="Disturb by noise of this share of the output's size instead of by quantizing, e.g. 0.02."),
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="Prompts: a file, or a bundled set [coco].")] = None,
    num_prompts: Annotated[int, typer.Option(min=2, max=MAX_COUNT, help="How many of them to use.")] = 16,
    steps: Annotated[int, typer.Option(min=1, max=MAX_STEPS, help="Denoising steps.")] = 50,
    guidance_scale: Annotated[float, typer.Option(help="Guidance.")] = 7.5,
    scheduler: Annotated[str | None, typer.Option(help="Scheduler [the model's own].")] = None,
    every: Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Disturb every Nth denoiser call only: faster.")] = 1,
    clip: Annotated[
        str | None, typer.Option(help=f"CLIP model: bundled name, directory, hub id [{BUNDLED_CLIP} or {USUAL_CLIP}].")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the initial noise.")] = 0,
    batch_size: BatchSize = 16,
    pipeline_arguments: PipelineArguments = None,
    images: Images = None,
    masks: Masks = None,
    revision: Revision = None,
    variant: Variant = None,
    config: Config = None,
    loras: Loras = None,
    device: Device = "cpu",
) -> None:
    """Disturb each denoising step alone and see what it does to the images: which end to relax, and why."""
    require_output(output, [model, prompts, config, images, masks, *lora_files(loras)])
    require_known(model, revision)
    quiet_libraries()
    from bitbrush.bench.experiments.folders import require_own
    from bitbrush.bench.experiments.protocol import plan_entries
    from bitbrush.bench.experiments.sensitivity.analysis import step_sensitivities
    from bitbrush.bench.experiments.sensitivity.disturbance import QuantizedActivations, RelativeNoise
    from bitbrush.bench.experiments.sensitivity.results import KNOWN, write_sensitivity
    from bitbrush.bench.networks.chosen import judge_of
    from bitbrush.methods.recipe import Recipe, check_activation_bits
    from bitbrush.session.journal import open_journal, require_same_work
    from bitbrush.session.machine import find_device
    from bitbrush.session.outputs import claimed, work_folder
    from bitbrush.session.replacing import remove_folder
    from bitbrush.sources.early_checks import require_plan
    from bitbrush.sources.identity import model_digest
    from bitbrush.sources.input_images import read_inputs
    from bitbrush.sources.models import find_model
    from bitbrush.sources.prompts import calibration_prompts, too_long
    from bitbrush.timeline.trajectory import prompt_batches

    require_own(output, KNOWN, "sensitivity analysis")
    check_activation_bits(activations)
    keys = {"steps": steps, "guidance_scale": guidance_scale, "pipeline_arguments": pipeline_arguments or []}
    plan = Recipe().updated({**keys, "scheduler": scheduler}).plan
    options = model_options(revision, variant, config, loras)
    find_model(model, options)
    require_plan(model, options, plan)
    if noise is not None:
        RelativeNoise(noise, seed)  # rejects another share
    inputs, place = read_inputs(images, masks), find_device(device)
    used = calibration_prompts(prompts, model)[:num_prompts]
    batches = prompt_batches(used, seed, batch_size, inputs=inputs)
    decisive = _decisive(plan, batches, place)
    decisive["disturbance"] = {"activations": activations} if noise is None else {"noise": noise, "seed": seed}
    work = work_folder(output)
    with claimed(output):
        require_same_work(work, decisive)
        judge, pipe = judge_of(model, clip), _load(model, options, place, scheduler)
        disturb = QuantizedActivations(pipe, activations) if noise is None else RelativeNoise(noise, seed)
        warn(*too_long(pipe, used))
        note(f"{model}: {disturb.description}, {steps} steps, guidance {guidance_scale:g}, {len(used)} prompts")
        journal = open_journal(work, {"model": model_digest(pipe), **decisive})
        measure = partial(step_sensitivities, pipe, batches, plan, disturb, judge, every=every)
        found = _resumed(measure, journal, work)
        protocol = {
            "model": model,
            "model_options": options.facts(),
            "disturbance": disturb.description,
            **plan_entries(pipe, plan),
            "every": every,
            "seed": seed,
            "batch_size": batch_size,
            "prompt_sets": [{"name": Path(prompts).stem if prompts else "calibration", "prompts": len(used)}],
            "clip": {"name": judge.name, "sha256": judge.digest},
        }
        described: dict[str, Any] = {"facts": _facts(protocol, options), "protocol": protocol, "prompts": used}
        _print(write_sensitivity(found, output, **described, command=command_line()), output)
        remove_folder(work)


def _decisive(plan: "SamplingPlan", batches: "Sequence[PromptBatch]", device: "torch.device") -> dict[str, Any]:
    """Collects what must be equal for unfinished work to go on, apart from the disturbance and the model."""
    from bitbrush.quantization.work import machine_facts, prompts_digest

    return {"device": device.type, "plan": asdict(plan), "prompts": prompts_digest(batches), **machine_facts()}


def _load(model: str, options: "ModelOptions", device: "torch.device", scheduler: str | None) -> "DiffusionPipeline":
    from bitbrush.sources.models import load_full_precision
    from bitbrush.sources.schedulers import with_scheduler

    return with_scheduler(load_full_precision(model, options).to(device), scheduler)


def _resumed(
    measure: "Callable[..., list[StepSensitivity]]", journal: "Journal", work: Path
) -> "list[StepSensitivity]":
    """Measures what the journal does not hold."""
    if pieces := journal.pieces():
        note(f"going on with the {len(pieces)} runs of the pipeline that {work} holds")
    with resumable():
        return measure(progress=shown, journal=journal)


def _facts(protocol: dict[str, Any], options: "ModelOptions") -> dict[str, str]:
    fused = "".join(f", LoRA {lora.path.name}@{lora.scale:g}" for lora in options.loras)
    (prompts,), clip = protocol["prompt_sets"], protocol["clip"]
    return {
        "Model": f"{protocol['model']}{fused}",
        "Disturbed": protocol["disturbance"],
        "Plan": f"{protocol['scheduler']}, {protocol['steps']} steps, guidance {protocol['guidance_scale']:g}",
        "Prompts": f"{prompts['prompts']} of {prompts['name']}, seed {protocol['seed']}",
        "CLIP": f"{clip['name']}, sha256 {clip['sha256'][:16]}",
    }


def _print(advice: "Recommendation", output: Path) -> None:
    from bitbrush.bench.experiments.sensitivity.results import REPORT

    say(f"{f'relax {advice.relax}' if advice.relax else 'no end to relax'}: {advice.reason}")
    note(f"{output / REPORT}\nOpen it in a browser.")
