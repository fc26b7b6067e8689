"""Power of a benchmark: the differences that its images could have shown."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.paired import PSNR
from bitbrush.bench.metrics.power import POWER, detectable_difference
from bitbrush.bench.pages.number_format import format_number

FULL = "full precision"


@dataclass(frozen=True)
class Detectable:
    """Smallest difference of a metric's means that the images of a prompt set show.

    Args:
        prompt_set: Name of the prompt set.
        candidate: Candidate.
        against: Another candidate, or full precision.
        metric: Metric.
        difference: The smallest difference that is found with a power of 80 %, two-sided at 5 %.
        images: Number of paired images.
    """

    prompt_set: str
    candidate: str
    against: str
    metric: str
    difference: float
    images: int


def detectable_differences(
    prompt_set: str,
    from_full: Mapping[str, Mapping[str, NDArray[np.float64]]],
    psnr: Mapping[str, NDArray[np.float64]],
) -> Iterator[Detectable]:
    """Yields the detectable differences of a prompt set.

    Args:
        prompt_set: Name of the prompt set.
        from_full: Paired differences from full precision by candidate and metric, (N,) each.
        psnr: PSNR to full precision by candidate, (N,); it is compared between candidates.
    """
    differences = [
        (name, FULL, metric, values) for name, metrics in from_full.items() for metric, values in metrics.items()
    ]
    differences += [(one, other, PSNR, psnr[one] - psnr[other]) for one, other in combinations(psnr, 2)]
    for candidate, against, metric, values in differences:
        difference = detectable_difference(values)
        if difference is not None:
            yield Detectable(prompt_set, candidate, against, metric, difference, values.size)


def power_lines(power: Sequence[Detectable]) -> Iterator[str]:
    """Yields a sentence for each prompt set: the differences that its images could have shown."""
    for prompt_set in dict.fromkeys(one.prompt_set for one in power):
        of_set = [one for one in power if one.prompt_set == prompt_set]
        metrics = dict.fromkeys((one.metric, one.against == FULL) for one in of_set)
        parts = [
            _part(metric, "from full precision" if from_full else "between two candidates", _ones(of_set, metric))
            for metric, from_full in metrics
        ]
        yield (
            f"{of_set[0].images} images of {prompt_set} show differences of these sizes with {POWER:.0%} power "
            f"(paired, from the observed spread): {'; '.join(parts)}."
        )


def _ones(of_set: Iterable[Detectable], metric: str) -> list[float]:
    return [one.difference for one in of_set if one.metric == metric]


def _part(metric: str, between: str, differences: Sequence[float]) -> str:
    ends = dict.fromkeys(format_number(end, digits=2) for end in (min(differences), max(differences)))
    return f"{metric} {between} {' to '.join(ends)}"
