"""Command ``bitbrush bench``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitbrush.bench.networks import BUNDLED_CLIP, USUAL_CLIP
from bitbrush.cli.console import note, quiet_libraries, resumable, say, show, table, warn
from bitbrush.cli.execution import DtypeOption, MemoryOption, RuntimeOption, announce
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
    lora_files,
    model_options,
)
from bitbrush.cli.outputs import require_output
from bitbrush.cli.plans import plans_of_bench
from bitbrush.cli.progress import shown
from bitbrush.numerics.limits import MAX_COUNT, MAX_SEED, MAX_STEPS
from bitbrush.session.launch import launched_ranks
from bitbrush.session.progress import silent
from bitbrush.sources.model_names import require_known

NOT_MEASURED, GATE_FAILED = 1, 3
"""Exit status where a candidate could not be measured, and where a gate does not hold."""

if TYPE_CHECKING:
    from bitbrush.bench.experiments.bench.gates import Gate
    from bitbrush.bench.experiments.bench.qdiffbench import Protocol
    from bitbrush.bench.networks.chosen import Networks
    from bitbrush.sources.models import ModelOptions


def bench(
    context: typer.Context,
    reference: Annotated[str, typer.Argument(help="Full-precision model: bundled name, directory or hub id.")],
    candidates: Annotated[
        list[str],
        typer.Argument(
            help="Each SOURCE or NAME=SOURCE: an artifact made of it, a model, another package's quantization (e.g. "
            "torchao:int8dq, sdnq:uint4+svd, gguf:FILE), or MODULE:FUNCTION, which returns a pipeline.",
            metavar="CANDIDATE...",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory for results (JSON, CSV) and report.html.")],
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="Held-out prompts of the calibration's style: text, COCO json, csv, parquet; repeatable."),
    ] = None,
    unseen_prompts: Annotated[
        list[str] | None, typer.Option(help="Prompts of another style than the calibration's; repeatable.")
    ] = None,
    num_images: Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Images of each prompt set and seed.")] = 128,
    seeds: Annotated[str, typer.Option(help="Seeds of the noise, e.g. 1,2,3; as many more make the floor.")] = "1",
    feature_extractor: Annotated[
        str | None,
        typer.Option(help="For distances between sets: a CLIP, or torch-fidelity's Inception (.pth) [CLIP]."),
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help=f"CLIP model: bundled name, directory, hub id [{BUNDLED_CLIP} or {USUAL_CLIP}].")
    ] = None,
    lpips: Annotated[Path | None, typer.Option(help="Weights of LPIPS, safetensors (docs/benchmark.md).")] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", help="NAME=WEIGHTS: pickscore, imagereward, hpsv2 or dreamsim; repeatable."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=MAX_STEPS, help="Denoising steps [the first artifact's].")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Guidance [the first artifact's].")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Scheduler [the first artifact's].")] = None,
    batch_size: BatchSize = 16,
    latents: Annotated[
        int, typer.Option(min=0, max=MAX_COUNT, help="Images of a set that keep the latents of every step.")
    ] = 32,
    runtime: RuntimeOption = "auto",
    dtype: DtypeOption = None,
    memory: MemoryOption = "expanded",
    pictures: Annotated[Path | None, typer.Option(help="Folder of images, shared by benchmarks [in output].")] = None,
    gates: Annotated[
        list[str] | None,
        typer.Option(
            "--gate",
            help="Bound that every pair must keep, e.g. psnr>=25 or lpips<=0.15, or median(psnr)>=30; repeatable. Exit "
            "status 3 where one does not hold.",
        ),
    ] = None,
    plans: Annotated[
        str | None,
        typer.Option(help="steps,scheduler or one of them: tabulate over these instead, as `bitbrush plans` does."),
    ] = None,
    pipeline_arguments: PipelineArguments = None,
    images: Images = None,
    masks: Masks = None,
    revision: Revision = None,
    variant: Variant = None,
    config: Config = None,
    loras: Loras = None,
) -> None:
    """Measure what candidates kept of their full-precision model, and write a report."""
    if plans is not None:
        plans_of_bench(plans, reference, candidates, output, _given(context))
        return
    launched_ranks()
    require_known(reference, revision)
    quiet_libraries()
    from bitbrush.bench.experiments.bench.run import bench_protocol, read_gates, require_bench_folder
    from bitbrush.bench.experiments.candidates import named_candidates, require_candidate
    from bitbrush.bench.networks.chosen import load_networks
    from bitbrush.sources.early_checks import require_plan
    from bitbrush.sources.input_images import read_inputs
    from bitbrush.sources.models import find_model

    sources = named_candidates(candidates)
    read = [reference, config, images, masks, *sources.values(), *lora_files(loras)]
    require_output(output, read)
    require_output(pictures or output, read, option="--pictures")
    require_bench_folder(output)
    options = model_options(revision, variant, config, loras)
    find_model(reference, options)
    for name, source in sources.items():
        require_candidate(name, source)
    plan: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale, "scheduler": scheduler}
    plan["pipeline_arguments"] = pipeline_arguments
    execution: dict[str, Any] = {"runtime": runtime, "dtype": dtype, "memory": memory}
    protocol = bench_protocol(
        reference,
        sources.values(),
        prompts=prompts or (),
        unseen_prompts=unseen_prompts or (),
        num_images=num_images,
        seeds=_seeds(seeds),
        batch_size=batch_size,
        latents=latents,
        inputs=read_inputs(images, masks),
        **plan,
        **execution,
    )
    require_plan(reference, options, protocol.plan)
    networks = load_networks(
        reference, clip=clip, feature_extractor=feature_extractor, lpips=lpips, metrics=metrics or ()
    )
    bounds = read_gates(gates or (), networks)
    _run(reference, options, sources, protocol, networks, output, pictures, bounds)


def _run(
    reference: str,
    options: "ModelOptions",
    sources: dict[str, str],
    protocol: "Protocol",
    networks: "Networks",
    output: Path,
    pictures: Path | None,
    gates: "list[Gate]",
) -> None:
    from bitbrush.bench.experiments.bench.run import REPORT, run_bench
    from bitbrush.bench.images.image_values import Work
    from bitbrush.session.outputs import claimed
    from bitbrush.session.ranks import ranks

    command = command_line()
    with ranks() as own, claimed(output, own):
        work = Work(own, shown if own.leads else silent)
        if own.leads:
            announce(protocol.choice)
            note(_announcement(reference, list(sources), protocol))
        with resumable():
            document = run_bench(
                reference,
                sources,
                protocol,
                networks,
                output,
                work,
                pictures=pictures,
                options=options,
                gates=gates,
                command=command,
            )
        if own.leads:
            _print(document)
            note(f"{output / REPORT}\nOpen it in a browser.")
            if any(one["problem"] for one in document["candidates"]):
                raise typer.Exit(NOT_MEASURED)
            if not all(result["passed"] for result in document["gates"]):
                raise typer.Exit(GATE_FAILED)


def _given(context: typer.Context) -> dict[str, Any]:
    """Collects the options that the user set, by name."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]
    return {name: context.params[name] for name in given if name not in ("reference", "candidates", "output")}


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"seeds is {text!r}; expected whole numbers with commas between, e.g. 1,2,3") from None
    if len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) > MAX_SEED - len(seeds):
        raise ValueError(f"seeds is {text!r}; they are numbers from 0 to {MAX_SEED - len(seeds)}, each once")
    return seeds


def _announcement(reference: str, names: list[str], protocol: "Protocol") -> str:
    plan = protocol.plan
    counts = ", ".join(f"{protocol.count(one)} of {one.name}" for one in protocol.sets)
    return (
        f"{', '.join(names)} against {reference}: {plan.steps} steps, guidance {plan.guidance_scale:g}, "
        f"prompts: {counts}"
    )


def _print(document: dict[str, Any]) -> None:
    from bitbrush.bench.experiments.bench.gates import gate_lines
    from bitbrush.bench.experiments.bench.power import Detectable, power_lines
    from bitbrush.bench.experiments.results import interval_of
    from bitbrush.bench.pages.number_format import format_interval

    entries = [document["floor"], *(one for one in document["candidates"] if one["sets"])]
    tables = {name: [one["sets"][name]["figures"] for one in entries] for name in document["reference"]["sets"]}
    if document["floor"]["together"]:
        tables["all prompt sets together"] = [one["together"] for one in entries]
    for name, figures in tables.items():
        shown_figures = table(name, *(one["name"] for one in entries))
        for metric in figures[0]:
            found = [one.get(metric) for one in figures]  # NaN latents have no error
            cells = [format_interval(interval_of(one)) if one else ("-", "") for one in found]
            shown_figures.add_row(metric, *(f"{mean}\n{between}" for mean, between in cells))
        show(shown_figures)
        say("")
    for line in power_lines([Detectable(**one) for one in document["power"]]):
        say(line)
    for line in gate_lines(document):
        warn(line)
    for one in document["candidates"]:
        if one["problem"]:
            warn(f"{one['name']} was not measured: {one['problem']}")
        else:
            say(f"{one['name']}: {one['verdict']['level']}")
            for reason in one["verdict"]["reasons"]:
                say(f"  {reason}")
