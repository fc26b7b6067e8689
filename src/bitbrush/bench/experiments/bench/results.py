"""``results.json`` and ``results.csv`` of a benchmark."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bitbrush.bench.experiments.bench.figures import BenchFigures, EntryFigures, SetFigures
from bitbrush.bench.experiments.bench.gates import GateResult
from bitbrush.bench.experiments.bench.qdiffbench import Entry, GeneratedImages, Protocol
from bitbrush.bench.experiments.bench.verdict import RULE
from bitbrush.bench.experiments.results import results_document
from bitbrush.bench.experiments.subject import Subject
from bitbrush.bench.experiments.value_table import Row, TableImages, value_rows
from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.metrics.registry import Metric, PairedMetric
from bitbrush.bench.networks.chosen import Networks

EXPERIMENT = "bench"


def bench_results(
    figures: BenchFigures,
    generated: GeneratedImages,
    protocol: Protocol,
    networks: Networks,
    *,
    gates: Sequence[GateResult] = (),
    command: str = "",
) -> dict[str, Any]:
    """Returns the results as JSON values.

    The figures depend on images and networks alone, not on which process computed them.
    """
    reference = generated.reference.subject
    assert reference is not None
    content = {
        "networks": _networks(networks),
        "metrics": [_metric(metric) for metric in networks.metrics],
        "absent": [] if networks.lpips else ["LPIPS: no weights were given (--lpips)"],
        "reference": {
            **_subject(reference),
            "seconds_per_image": generated.reference.seconds_per_image,
            "sets": _sets(figures.reference),
            "together": _intervals(figures.together),
        },
        "floor": {"name": generated.floor.name, **_figures(figures.floor)},
        "candidates": [_candidate(candidate) for candidate in figures.candidates],
        "power": [asdict(one) for one in figures.power],
        "gates": [asdict(one) for one in gates],
    }
    facts = _protocol(reference.source, generated, protocol)
    return results_document(EXPERIMENT, command=command, protocol=facts, content=content)


def bench_rows(figures: BenchFigures, generated: GeneratedImages) -> Iterator[Row]:
    """Yields a row for each image, candidate and metric, full precision and another seed included."""
    measured = [(generated.reference.name, generated.reference, figures.reference)]
    measured += [(entry.entry.name, entry.entry, entry.sets) for entry in (figures.floor, *figures.candidates)]
    for name, entry, sets in measured:
        for prompt_set, of_set in sets.items():
            collection = entry.images[prompt_set]
            seeds = [collection.seed(index) for index in range(len(collection.prompts))]
            images = TableImages(prompt_set, collection.prompts, seeds)
            yield from value_rows(EXPERIMENT, name, images, of_set.image_values)


def _protocol(model: str, generated: GeneratedImages, protocol: Protocol) -> dict[str, Any]:
    return {
        "model": model,
        "steps": protocol.plan.steps,
        "guidance_scale": protocol.plan.guidance_scale,
        "scheduler": generated.scheduler,
        "arguments": dict(protocol.plan.arguments),
        "denoiser_calls": generated.calls,
        "seeds": list(protocol.seeds),
        "floor_seeds": list(protocol.floor_seeds),
        "batch_size": protocol.batch_size,
        "confidence": 0.95,
        "verdict_rule": RULE,
        "prompt_sets": [
            {
                "name": prompt_set.name,
                "domain": prompt_set.domain.value,
                "prompts": protocol.count(prompt_set),
                "of": len(prompt_set.prompts),
            }
            for prompt_set in protocol.sets
        ],
    }


def _networks(networks: Networks) -> list[dict[str, str]]:
    uses = [("features", networks.extractor), ("text-image matching", networks.clip)]
    entries = [{"use": use, "name": network.name, "sha256": network.digest} for use, network in uses]
    if networks.lpips:
        entries.append({"use": "perceptual distance", "name": networks.lpips.name, "sha256": networks.lpips.digest})
    return entries


def _metric(metric: Metric) -> dict[str, Any]:
    return {
        "name": metric.name,
        "kind": "paired" if isinstance(metric, PairedMetric) else "image",
        "higher_is_better": metric.higher_is_better,
        "version": metric.version,
    }


def _candidate(figures: EntryFigures) -> dict[str, Any]:
    entry: Entry = figures.entry
    verdict = figures.verdict
    return {
        **(_subject(entry.subject) if entry.subject else {"name": entry.name}),
        "seconds_per_image": entry.seconds_per_image,
        "problem": entry.problem,
        "verdict": {"level": verdict.level.value, "reasons": list(verdict.reasons)} if verdict else None,
        **_figures(figures),
        "gaps": _intervals(figures.gaps),
    }


def _figures(figures: EntryFigures) -> dict[str, Any]:
    """Returns figures by prompt set, and ``together`` over the images of all sets; empty where there is one set."""
    return {"sets": _sets(figures.sets), "together": _intervals(figures.together)}


def _subject(subject: Subject) -> dict[str, Any]:
    return {**asdict(subject), "notes": list(subject.notes)}


def _sets(sets: Mapping[str, SetFigures]) -> dict[str, Any]:
    return {
        name: {
            "figures": _intervals(of_set.figures),
            "latent_mse_by_step": [_interval(step) for step in of_set.latent_mse],
            "defects": {str(index): defect for index, defect in sorted(of_set.defects.items())},
            "worst_pairs": list(of_set.worst),
        }
        for name, of_set in sets.items()
    }


def _intervals(figures: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: _interval(interval) for name, interval in figures.items()}


def _interval(interval: Interval) -> dict[str, float]:
    return asdict(interval)
