"""``bitbrush bench``."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitbrush.cli.console import note, out, quiet_libraries, shown, table, warn
from bitbrush.timeline.progress import silent

if TYPE_CHECKING:
    from bitbrush.bench.qdiffbench import Networks, Protocol
    from bitbrush.timeline.plan import SamplingPlan

BUNDLED_CLIP, USUAL_CLIP = "emoji-clip", "openai/clip-vit-large-patch14"


def bench(
    reference: Annotated[str, typer.Argument(help="Full-precision model: bundled name, directory or hub id.")],
    candidates: Annotated[
        list[str],
        typer.Argument(help="Artifacts made of it (or models), each DIR or NAME=DIR.", metavar="CANDIDATE..."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory for results.json and report.html.")],
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="Held-out prompts of the calibration's style: text, COCO json, csv, parquet; repeatable."),
    ] = None,
    unseen_prompts: Annotated[
        list[str] | None, typer.Option(help="Prompts of another style than the calibration's; repeatable.")
    ] = None,
    num_images: Annotated[int, typer.Option(min=1, help="Pictures of each prompt set and seed.")] = 128,
    seeds: Annotated[str, typer.Option(help="Seeds of the noise, e.g. 1,2,3; as many more make the floor.")] = "1",
    feature_extractor: Annotated[
        str | None,
        typer.Option(
            help="For the distance between sets: a CLIP, or torch-fidelity's Inception weights (.pth) [CLIP]."
        ),
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help=f"CLIP model: bundled name, directory, hub id [{BUNDLED_CLIP} or {USUAL_CLIP}].")
    ] = None,
    lpips: Annotated[Path | None, typer.Option(help="Weights of LPIPS, safetensors (docs/benchmark.md).")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps [the first artifact's].")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Guidance [the first artifact's].")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Scheduler [the first artifact's].")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per denoiser call.")] = 16,
    latents: Annotated[
        int, typer.Option(min=0, help="Of how many pictures of a set the latents of every step are kept.")
    ] = 32,
    pictures: Annotated[
        Path | None, typer.Option(help="Where pictures are kept, to be shared by benchmarks [in the output].")
    ] = None,
) -> None:
    """Measure what artifacts kept of their full-precision model, and write a report."""
    quiet_libraries()
    from bitbrush.artifact.models import find_model
    from bitbrush.bench.prompts import bench_sets
    from bitbrush.bench.qdiffbench import Protocol
    from bitbrush.bench.run import require_bench_folder
    from bitbrush.bench.subjects import candidate_names

    require_bench_folder(output)
    find_model(reference)
    names = candidate_names(candidates)
    sources = dict(zip(names, (source.rpartition("=")[2] for source in candidates), strict=True))
    protocol = Protocol(
        plan=_plan(list(sources.values()), steps, guidance_scale, scheduler),
        sets=bench_sets(prompts or (), unseen_prompts or (), reference),
        num_images=num_images,
        seeds=_seeds(seeds),
        batch_size=batch_size,
        with_latents=latents,
    )
    networks = _networks(reference, clip, feature_extractor, lpips)
    _run(reference, sources, protocol, networks, output, pictures)


def _run(
    reference: str,
    sources: dict[str, str],
    protocol: "Protocol",
    networks: "Networks",
    output: Path,
    pictures: Path | None,
) -> None:
    from bitbrush.bench.collection import Work
    from bitbrush.bench.ranks import ranks
    from bitbrush.bench.run import REPORT, run_bench

    command = shlex.join(["bitbrush", *sys.argv[1:]])
    with ranks() as own:
        work = Work(own, shown if own.leads else silent)
        if own.leads:
            note(_announcement(reference, list(sources), protocol))
        document = run_bench(reference, sources, protocol, networks, output, work, pictures=pictures, command=command)
        if own.leads:
            _print(document)
            note(f"{output / REPORT}\nOpen it in a browser.")


def _plan(sources: list[str], steps: int | None, guidance_scale: float | None, scheduler: str | None) -> "SamplingPlan":
    """What is given, then what the first artifact was calibrated for, then the usual."""
    from bitbrush.artifact.store import is_artifact, read_manifest
    from bitbrush.methods.recipe import Recipe

    artifact = next((source for source in sources if is_artifact(source)), None)
    recipe = Recipe().updated(read_manifest(artifact)["recipe"]) if artifact else Recipe()
    given: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale, "scheduler": scheduler}
    return recipe.updated({key: value for key, value in given.items() if value is not None}).plan


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"seeds is {text!r}; expected whole numbers with commas between, e.g. 1,2,3") from None
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds is {text!r}; they are numbers from 0 on, each once")
    return seeds


def _networks(reference: str, clip: str | None, feature_extractor: str | None, lpips: Path | None) -> "Networks":
    import torch

    from bitbrush.bench.networks.clip import load_clip
    from bitbrush.bench.networks.inception import load_inception
    from bitbrush.bench.networks.lpips import load_lpips
    from bitbrush.bench.qdiffbench import Networks
    from bitbrush.zoo import MODELS

    cpu = torch.device("cpu")
    judge = load_clip(clip or (BUNDLED_CLIP if reference in MODELS else USUAL_CLIP), cpu)
    perceptual = load_lpips(lpips) if lpips else None
    if feature_extractor is None:
        return Networks(judge, judge, perceptual)
    if feature_extractor.endswith(".pth"):
        return Networks(load_inception(feature_extractor), judge, perceptual)
    return Networks(load_clip(feature_extractor, cpu), judge, perceptual)


def _announcement(reference: str, names: list[str], protocol: "Protocol") -> str:
    plan = protocol.plan
    counts = ", ".join(f"{protocol.count(one)} of {one.name}" for one in protocol.sets)
    return (
        f"{', '.join(names)} against {reference}: {plan.steps} steps, guidance {plan.guidance_scale:g}, "
        f"prompts: {counts}"
    )


def _print(document: dict[str, Any]) -> None:
    from bitbrush.bench.metrics.interval import Interval
    from bitbrush.bench.number_format import format_interval

    measured = [one for one in document["candidates"] if one["sets"]]
    for name in document["reference"]["sets"]:
        entries = [document["floor"], *measured]
        figures = table(name, *(one["name"] for one in entries))
        for metric in entries[0]["sets"][name]["figures"]:
            cells = [format_interval(Interval(**one["sets"][name]["figures"][metric])) for one in entries]
            figures.add_row(metric, *(f"{mean}\n{between}" for mean, between in cells))
        out().print(figures)
        out().print()
    for one in document["candidates"]:
        if one["problem"]:
            warn(f"{one['name']} was not measured: {one['problem']}")
        else:
            out().print(f"{one['name']}: {one['verdict']['level']}", markup=False)
            for reason in one["verdict"]["reasons"]:
                out().print(f"  {reason}", markup=False)
