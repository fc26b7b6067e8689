"""``results.json``: everything a benchmark found, and what one has to know to find it again."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bitbrush.bench.experiments.bench.figures import BenchFigures, EntryFigures, SetFigures
from bitbrush.bench.experiments.bench.qdiffbench import Entry, Pictures, Protocol
from bitbrush.bench.experiments.bench.verdict import RULE
from bitbrush.bench.experiments.candidates import Subject
from bitbrush.bench.experiments.results import finite, versions
from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.networks.chosen import Networks

SCHEMA_VERSION = 1


def results_document(
    figures: BenchFigures, pictures: Pictures, protocol: Protocol, networks: Networks, command: str
) -> dict[str, Any]:
    """As JSON values. The figures depend on pictures and networks alone, not on who computed them."""
    reference = pictures.reference.subject
    assert reference is not None
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "protocol": {
            "steps": protocol.plan.steps,
            "guidance_scale": protocol.plan.guidance_scale,
            "scheduler": pictures.scheduler,
            "denoiser_calls": pictures.calls,
            "seeds": list(protocol.seeds),
            "floor_seeds": list(protocol.floor_seeds),
            "batch_size": protocol.batch_size,
            "confidence": 0.95,
            "verdict_rule": RULE,
            "prompt_sets": [
                {"name": one.name, "domain": one.domain.value, "prompts": protocol.count(one), "of": len(one.prompts)}
                for one in protocol.sets
            ],
        },
        "networks": _networks(networks),
        "absent": [] if networks.lpips else ["LPIPS: no weights were given (--lpips)"],
        "reference": {
            **_subject(reference),
            "sets": _sets(figures.reference),
            "together": _intervals(figures.together),
        },
        "floor": {"name": pictures.floor.name, **_figures(figures.floor)},
        "candidates": [_candidate(one) for one in figures.candidates],
        "versions": versions(),
    }
    found: dict[str, Any] = finite(document)  # the median of few images has no interval
    return found


def _networks(networks: Networks) -> list[dict[str, str]]:
    used = [("features", networks.extractor), ("text-image matching", networks.clip)]
    named = [{"use": use, "name": one.name, "sha256": one.digest} for use, one in used]
    if networks.lpips:
        named.append({"use": "perceptual distance", "name": networks.lpips.name, "sha256": networks.lpips.digest})
    return named


def _candidate(one: EntryFigures) -> dict[str, Any]:
    entry: Entry = one.entry
    told = _subject(entry.subject) if entry.subject else {"name": entry.name}
    return {
        **told,
        "problem": entry.problem,
        "verdict": {"level": one.verdict.level.value, "reasons": list(one.verdict.reasons)} if one.verdict else None,
        **_figures(one),
        "gaps": _intervals(one.gaps),
    }


def _figures(one: EntryFigures) -> dict[str, Any]:
    """``together``: over the pictures of all prompt sets; empty where there is one set."""
    return {"sets": _sets(one.sets), "together": _intervals(one.together)}


def _subject(subject: Subject) -> dict[str, Any]:
    return {**asdict(subject), "notes": list(subject.notes)}


def _sets(sets: Mapping[str, SetFigures]) -> dict[str, Any]:
    return {
        name: {
            "figures": _intervals(one.figures),
            "latent_mse_by_step": [_interval(step) for step in one.latent_mse],
            "defects": {str(index): defect for index, defect in sorted(one.defects.items())},
            "worst_pairs": list(one.worst),
        }
        for name, one in sets.items()
    }


def _intervals(figures: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: _interval(interval) for name, interval in figures.items()}


def _interval(interval: Interval) -> dict[str, float]:
    return asdict(interval)
