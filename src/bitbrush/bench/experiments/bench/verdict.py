"""Verdict on a candidate: the grades that its figures leave open, by a rule that is stated with it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from bitbrush.bench.metrics.counts import FEWEST_DECIDING, chance_of_as_many, share_interval
from bitbrush.bench.metrics.interval import Interval

ALIKE_SSIM = 0.95
"""Smallest SSIM of a pair that counts as alike."""
ALIKE_SHARE, MOST = 0.9, 0.5
"""Shares of pairs alike from which a candidate is indistinguishable, and below which it is clearly worse."""
MATCH_LOSS, SLIGHT_MATCH_LOSS = 0.02, 0.005
"""Shares of the reference's CLIP score whose loss is clear, and slight."""
BROKEN_SHARE = 0.01
"""Share of additional broken images that a candidate may have."""
SIGNIFICANCE = 0.025
"""One-sided significance, as of one end of a 95 % interval."""
MANY_IMAGES = 20_000
"""Largest number of images that a verdict proposes."""

RULE = (
    "Three grades; a candidate has those that the 95 % intervals leave open in its worst prompt set. "
    f"Pairs alike (SSIM of {ALIKE_SSIM} or more; exact interval of their share): indistinguishable from "
    f"{ALIKE_SHARE:.0%} on, clearly worse below {MOST:.0%}, slightly worse between. "
    f"CLIP score (interval of the paired difference): clearly worse beyond a loss of {MATCH_LOSS:.0%} of the "
    f"reference's, slightly worse beyond {SLIGHT_MATCH_LOSS:.1%}. "
    "Distance between sets (Fréchet or FID): clearly worse where it is larger than the floor's, which is full "
    "precision against itself from other seeds; fine where it is smaller; open where their difference is within its "
    "interval. "
    "Black and constant images: clearly worse where more are the candidate's alone than the reference's alone by an "
    f"exact test; open where {BROKEN_SHARE:.0%} more are not excluded. NaN latents: clearly worse. "
    f"Fewer than {FEWEST_DECIDING} images of a set, or all three grades open: too few to tell."
)


class Grade(IntEnum):
    """Grade of a candidate, better ones first."""

    INDISTINGUISHABLE = 0
    SLIGHTLY_WORSE = 1
    CLEARLY_WORSE = 2


class Level(StrEnum):
    """Name of a range of grades that may be open."""

    INDISTINGUISHABLE = "indistinguishable"
    AT_MOST_SLIGHTLY_WORSE = "at most slightly worse"
    SLIGHTLY_WORSE = "slightly worse"
    AT_LEAST_SLIGHTLY_WORSE = "at least slightly worse"
    CLEARLY_WORSE = "clearly worse"
    TOO_FEW = "too few to tell"


_LEVELS = {
    (Grade.INDISTINGUISHABLE, Grade.INDISTINGUISHABLE): Level.INDISTINGUISHABLE,
    (Grade.INDISTINGUISHABLE, Grade.SLIGHTLY_WORSE): Level.AT_MOST_SLIGHTLY_WORSE,
    (Grade.SLIGHTLY_WORSE, Grade.SLIGHTLY_WORSE): Level.SLIGHTLY_WORSE,
    (Grade.SLIGHTLY_WORSE, Grade.CLEARLY_WORSE): Level.AT_LEAST_SLIGHTLY_WORSE,
    (Grade.CLEARLY_WORSE, Grade.CLEARLY_WORSE): Level.CLEARLY_WORSE,
    (Grade.INDISTINGUISHABLE, Grade.CLEARLY_WORSE): Level.TOO_FEW,
}


@dataclass(frozen=True)
class Evidence:
    """Figures of one prompt set that a verdict considers.

    Args:
        alike: Share of pairs alike with its exact interval.
        distance: Distance of the candidate's set of images from the reference's.
        floor: The same distance of another seed.
        match: Paired difference of the CLIP score.
        reference_match: CLIP score of the reference.
        broken: Number of black or constant images of the candidate alone.
        reference_broken: Number of those of the reference alone.
        nan: Number of images with NaN latents that the reference does not have.
    """

    alike: Interval
    distance: Interval
    floor: Interval
    match: Interval
    reference_match: float
    broken: int = 0
    reference_broken: int = 0
    nan: int = 0


@dataclass(frozen=True)
class Verdict:
    """Level with its reasons; those of the best level are the figures that were considered."""

    level: Level
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Finding:
    """Grades from ``best`` to ``worst`` that one figure leaves open, and the figure in words."""

    best: Grade
    worst: Grade
    text: str


def verdict(evidence: Mapping[str, Evidence]) -> Verdict:
    """Judges a candidate by :data:`RULE` from the evidence of every prompt set."""
    findings = {name: list(_findings(of_set)) for name, of_set in evidence.items()}
    best = max(finding.best for of_set in findings.values() for finding in of_set)
    worst = max(finding.worst for of_set in findings.values() for finding in of_set)
    if worst is Grade.INDISTINGUISHABLE:
        reasons = [f"{name}: {of_set[0].text}" for name, of_set in findings.items()]
        return Verdict(Level.INDISTINGUISHABLE, tuple(reasons))
    pairs = [(name, finding) for name, of_set in findings.items() for finding in of_set]
    deciding = [pair for pair in pairs if pair[1].best is worst] or [pair for pair in pairs if pair[1].worst > 0]
    return Verdict(_LEVELS[best, worst], tuple(f"{name}: {finding.text}" for name, finding in deciding))


def _findings(evidence: Evidence) -> Iterator[_Finding]:
    """Yields the finding of each figure of a set, the share of pairs alike first."""
    images = evidence.alike.n
    if images < FEWEST_DECIDING:
        text = f"{evidence.alike.mean:.0%} of {images} pairs alike; fewer than {FEWEST_DECIDING} images decide nothing"
        yield _Finding(Grade.INDISTINGUISHABLE, Grade.CLEARLY_WORSE, text)
    else:
        yield _alike(evidence.alike)
        yield _distance(evidence.distance, evidence.floor)
        yield _match(evidence.match, evidence.reference_match)
    if evidence.broken:
        yield _broken(evidence.broken, evidence.reference_broken, images)
    if evidence.nan:
        yield _Finding(Grade.CLEARLY_WORSE, Grade.CLEARLY_WORSE, f"{evidence.nan} of {images} images have NaN latents")


def _alike(share: Interval) -> _Finding:
    best, worst = _share_grade(share.high), _share_grade(share.low)
    text = f"{share.mean:.0%} of {share.n} pairs alike ({share.low:.0%} to {share.high:.0%})"
    needed = images_needed(share) if best != worst else None
    return _Finding(best, worst, f"{text}; about {needed:,} images would tell" if needed else text)


def _share_grade(share: float) -> Grade:
    if share >= ALIKE_SHARE:
        return Grade.INDISTINGUISHABLE
    return Grade.SLIGHTLY_WORSE if share >= MOST else Grade.CLEARLY_WORSE


def images_needed(share: Interval) -> int | None:
    """Estimates the images that would leave one grade open at this share of pairs alike; None for too many."""
    images = max(FEWEST_DECIDING, share.n + 1)
    while images <= MANY_IMAGES:
        interval = share_interval(round(share.mean * images), images)
        if _share_grade(interval.low) == _share_grade(interval.high):
            return images
        images += max(1, images // 20)
    return None


def _distance(distance: Interval, floor: Interval) -> _Finding:
    figures = f"{distance.mean:.3g} ({distance.low:.3g} to {distance.high:.3g})"
    against = f"another seed {floor.mean:.3g} ({floor.low:.3g} to {floor.high:.3g})"
    farther = distance.mean - floor.mean
    uncertain = math.hypot(distance.high - distance.mean, floor.high - floor.mean)
    if farther > uncertain:
        text = f"farther from full precision than another seed is: {figures}, {against}"
        return _Finding(Grade.CLEARLY_WORSE, Grade.CLEARLY_WORSE, text)
    open_to = Grade.CLEARLY_WORSE if farther > -uncertain else Grade.INDISTINGUISHABLE
    return _Finding(Grade.INDISTINGUISHABLE, open_to, f"distance near that of another seed: {figures}, {against}")


def _match(match: Interval, reference: float) -> _Finding:
    best, worst = (_match_grade(loss / reference if reference > 0 else 0.0) for loss in (-match.high, -match.low))
    text = f"CLIP score changed by {match.mean:+.2f} ({match.low:+.2f} to {match.high:+.2f}) of {reference:.1f}"
    return _Finding(best, worst, text)


def _match_grade(loss: float) -> Grade:
    if loss > MATCH_LOSS:
        return Grade.CLEARLY_WORSE
    return Grade.SLIGHTLY_WORSE if loss > SLIGHT_MATCH_LOSS else Grade.INDISTINGUISHABLE


def _broken(candidate: int, reference: int, images: int) -> _Finding:
    text = f"{candidate} of {images} images are black or constant in it alone, {reference} in the reference alone"
    if images >= FEWEST_DECIDING and chance_of_as_many(candidate, reference) <= SIGNIFICANCE:
        return _Finding(Grade.CLEARLY_WORSE, Grade.CLEARLY_WORSE, text)
    most = share_interval(candidate, images).high - share_interval(reference, images).low
    excluded = candidate <= reference or most < BROKEN_SHARE
    return _Finding(Grade.INDISTINGUISHABLE, Grade.INDISTINGUISHABLE if excluded else Grade.CLEARLY_WORSE, text)
