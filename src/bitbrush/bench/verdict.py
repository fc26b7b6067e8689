"""Whether to ship: a plain word for each candidate, by a rule that is stated with it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from bitbrush.bench.metrics.interval import Interval

ALIKE_SSIM = 0.95
"""A pair with at least this SSIM is counted as alike."""
ALIKE_SHARE = 0.9
MATCH_LOSS = 0.02
"""Share of the reference's CLIP score whose loss is a clear one."""

RULE = (
    "Clearly worse: in any prompt set, more black, constant or NaN pictures than the reference; or a distance between "
    "sets (Fréchet or FID) whose interval lies above the floor's, which is full precision against itself from other "
    f"seeds; or a CLIP score whose interval of the difference lies below -{MATCH_LOSS:.0%} of the reference's. "
    f"Indistinguishable: in every prompt set none of these, at least {ALIKE_SHARE:.0%} of the pairs alike (SSIM of "
    f"{ALIKE_SSIM} or more; the interval's lower end counts), the distance's interval below the floor, and no CLIP "
    "score that is lower beyond its interval by more than a quarter of that share. Slightly worse: all between."
)


class Level(StrEnum):
    INDISTINGUISHABLE = "indistinguishable"
    SLIGHTLY_WORSE = "slightly worse"
    CLEARLY_WORSE = "clearly worse"


@dataclass(frozen=True)
class Evidence:
    """Of one prompt set. ``alike``: share of the pairs; ``match``: the CLIP score's paired difference."""

    defects: int
    reference_defects: int
    distance: Interval
    floor: Interval
    alike: Interval
    match: Interval
    reference_match: float


@dataclass(frozen=True)
class Verdict:
    """The level, and what led there: for the worse ones what is worse, for the best what was looked at."""

    level: Level
    reasons: tuple[str, ...]


def verdict(evidence: Mapping[str, Evidence]) -> Verdict:
    """By :data:`RULE`, from the evidence of every prompt set."""
    clear = [reason for name, one in evidence.items() for reason in _clear_losses(name, one)]
    if clear:
        return Verdict(Level.CLEARLY_WORSE, tuple(clear))
    slight = [reason for name, one in evidence.items() for reason in _slight_losses(name, one)]
    if slight:
        return Verdict(Level.SLIGHTLY_WORSE, tuple(slight))
    kept = tuple(f"{name}: {one.alike.mean:.0%} of the pairs alike" for name, one in evidence.items())
    return Verdict(Level.INDISTINGUISHABLE, kept)


def _clear_losses(name: str, one: Evidence) -> Iterator[str]:
    if one.defects > one.reference_defects:
        yield f"{name}: {one.defects} broken pictures, the reference has {one.reference_defects}"
    if one.distance.low > one.floor.high:
        farther = f"{one.distance.mean:.3g} > {one.floor.mean:.3g}"
        yield f"{name}: farther from full precision than another seed is ({farther})"
    if one.match.high < -MATCH_LOSS * one.reference_match:
        yield f"{name}: CLIP score lower by {-one.match.mean:.2f}"


def _slight_losses(name: str, one: Evidence) -> Iterator[str]:
    if one.alike.low < ALIKE_SHARE:
        yield f"{name}: {one.alike.mean:.0%} of the pairs alike"
    if one.distance.high > one.floor.mean:
        yield f"{name}: distance near that of another seed ({one.distance.mean:.3g}, floor {one.floor.mean:.3g})"
    if one.match.high < 0 and -one.match.mean > MATCH_LOSS / 4 * one.reference_match:
        yield f"{name}: CLIP score lower by {-one.match.mean:.2f}"
