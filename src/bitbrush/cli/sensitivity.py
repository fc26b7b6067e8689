"""Command ``bitbrush sensitivity``."""

import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitbrush.bench.networks import BUNDLED_CLIP, USUAL_CLIP
from bitbrush.cli.console import note, quiet_libraries, resumable, say, warn
from bitbrush.cli.options import (
    Config,
    Device,
    Images,
    Loras,
    Masks,
    PipelineArguments,
    Revision,
    Variant,
    model_options,
)
from bitbrush.cli.progress import shown
from bitbrush.sources.model_names import require_known

if TYPE_CHECKING:
    from bitbrush.bench.experiments.sensitivity.analysis import Recommendation
    from bitbrush.sources.models import ModelOptions


def sensitivity(
    model: Annotated[str, typer.Argument(help="Full-precision model: bundled name, directory or hub id.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory for results (JSON, CSV) and report.html.")],
    activations: Annotated[int, typer.Option(help="Bits of the disturbed step's activations, 4 to 16.")] = 8,
    noise: Annotated[
        float | None,
        typer.Option(help="Disturb by noise of this share of the output's size instead of by quantizing, e.g. 0.02."),
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="Prompts: a file, or a bundled set [coco].")] = None,
    num_prompts: Annotated[int, typer.Option(min=2, help="How many of them to use.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    guidance_scale: Annotated[float, typer.Option(help="Guidance.")] = 7.5,
    scheduler: Annotated[str | None, typer.Option(help="Scheduler [the model's own].")] = None,
    every: Annotated[int, typer.Option(min=1, help="Disturb every Nth denoiser call only: faster.")] = 1,
    clip: Annotated[
        str | None, typer.Option(help=f"CLIP model: bundled name, directory, hub id [{BUNDLED_CLIP} or {USUAL_CLIP}].")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial noise.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per denoiser call.")] = 16,
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
    require_known(model, revision)
    quiet_libraries()
    from bitbrush.bench.experiments.folders import require_own
    from bitbrush.bench.experiments.protocol import plan_entries
    from bitbrush.bench.experiments.sensitivity.analysis import step_sensitivities
    from bitbrush.bench.experiments.sensitivity.disturbance import QuantizedActivations, RelativeNoise
    from bitbrush.bench.experiments.sensitivity.results import KNOWN, write_sensitivity
    from bitbrush.bench.networks.chosen import judge_of
    from bitbrush.methods.recipe import Recipe, check_activation_bits
    from bitbrush.quantization.work import machine_facts, prompts_digest
    from bitbrush.session.journal import open_journal, require_same_work, work_folder
    from bitbrush.session.machine import find_device
    from bitbrush.sources.identity import model_digest
    from bitbrush.sources.input_images import read_inputs
    from bitbrush.sources.models import find_model, load_full_precision
    from bitbrush.sources.prompts import calibration_prompts, too_long
    from bitbrush.sources.schedulers import with_scheduler
    from bitbrush.timeline.trajectory import prompt_batches

    require_own(output, KNOWN, "sensitivity analysis")
    check_activation_bits(activations)
    given = {"steps": steps, "guidance_scale": guidance_scale, "scheduler": scheduler}
    plan = Recipe().updated({**given, "pipeline_arguments": pipeline_arguments or []}).plan
    options = model_options(revision, variant, config, loras)
    find_model(model, options)
    inputs, place = read_inputs(images, masks), find_device(device)
    used = calibration_prompts(prompts, model)[:num_prompts]
    batches = prompt_batches(used, seed, batch_size, inputs=inputs)
    disturbance = {"activations": activations} if noise is None else {"noise": noise, "seed": seed}
    decisive = {"disturbance": disturbance, "plan": asdict(plan), "prompts": prompts_digest(batches)}
    decisive |= {"device": place.type, **machine_facts()}
    work = work_folder(output)
    require_same_work(work, decisive)
    judge = judge_of(model, clip)
    pipe = with_scheduler(load_full_precision(model, options).to(place), scheduler)
    disturb = QuantizedActivations(pipe, activations) if noise is None else RelativeNoise(noise, seed)
    for message in too_long(pipe, used):
        warn(message)
    note(f"{model}: {disturb.description}, {steps} steps, guidance {guidance_scale:g}, {len(used)} prompts")
    journal = open_journal(work, {"model": model_digest(pipe), **decisive})
    if done := journal.pieces():
        note(f"going on with the {len(done)} runs of the pipeline that {work} holds")
    with resumable():
        found = step_sensitivities(pipe, batches, plan, disturb, judge, every=every, progress=shown, journal=journal)
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
    advice = write_sensitivity(found, output, **described, command=shlex.join(["bitbrush", *sys.argv[1:]]))
    _print(advice, output)
    shutil.rmtree(work)


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
