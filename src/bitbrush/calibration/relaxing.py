"""Activation relaxing, PCR section 3.3 (arXiv 2311.06322): a few sensitive steps get more activation bits.

The interval is set by hand (:class:`Relaxation`, as in the paper). Alternatively, the bits of every layer and step
follow from measured sensitivities at a given average (:class:`MeasuredRelaxation`, computed by
``methods/stages/allocate_bits.py``).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from bitbrush.numerics.limits import MAX_BITS, MIN_BITS

LEAST_MEASURED_BITS = 4
AUTO = "auto:"


@dataclass(frozen=True)
class Relaxation:
    """Steps of ``[start, end)``, as fractions of the denoising steps (0 = noisiest), run with ``bits`` activations.

    Source: activation relaxing, PCR section 3.3. The paper's tau is ``end - start``. Exactly ``round(tau * T)`` of T
    distinct timesteps are relaxed (the published code relaxes one more).
    """

    start: float
    end: float
    bits: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(
                f"relaxed interval is {self.start:g}:{self.end:g}; fractions of the steps with "
                "0 <= start < end <= 1 are needed, e.g. 0.8:1.0 for the last fifth"
            )
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f"relaxed bits is {self.bits}; supported are {MIN_BITS} to {MAX_BITS}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses ``start:end@bits``, e.g. ``0.8:1.0@10``.

        Raises:
            ValueError: The text has another form, or its values are out of range.
        """
        match = re.fullmatch(r"\s*([-+.\deE]+)\s*:\s*([-+.\deE]+)\s*@\s*(\d+)\s*", text)
        try:
            if match is None:
                raise ValueError("no match")
            start, end, bits = float(match[1]), float(match[2]), int(match[3])
        except ValueError:
            raise ValueError(f"relax is {text!r}; expected START:END@BITS, e.g. 0.8:1.0@10") from None
        return cls(start, end, bits)

    def __str__(self) -> str:
        start, end = (repr(float(share)).removesuffix(".0") for share in (self.start, self.end))
        return f"{start}:{end}@{self.bits}"

    def timesteps(self, timesteps: Sequence[float]) -> frozenset[float]:
        """Returns the relaxed ones among the distinct ``timesteps`` of a plan, which begins with the noisiest."""
        distinct = sorted(set(timesteps), reverse=timesteps[0] >= timesteps[-1])
        count = _round_half_up((self.end - self.start) * len(distinct))
        first = min(_round_half_up(self.start * len(distinct)), len(distinct) - count)
        return frozenset(distinct[first : first + count])


@dataclass(frozen=True)
class MeasuredRelaxation:
    """Bits for each layer and step by measured sensitivity, with ``average`` bits over all multiplications."""

    average: float

    def __post_init__(self) -> None:
        if not LEAST_MEASURED_BITS <= self.average <= MAX_BITS:
            raise ValueError(
                f"relax is {self}; measured activation bits are {LEAST_MEASURED_BITS} to {MAX_BITS} on average"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses ``auto:BITS``, e.g. ``auto:8.2``.

        Raises:
            ValueError: The text has another form, or the average is out of range.
        """
        try:
            return cls(float(text.removeprefix(AUTO)))
        except ValueError as error:
            raise ValueError(f"relax is {text!r}; expected auto:BITS, e.g. auto:8.2 ({error})") from None

    def __str__(self) -> str:
        return f"{AUTO}{self.average:g}"


def _round_half_up(steps: float) -> int:
    # 1 - 0.9 is less than 0.1 in floating point; equal fractions at either end must give equal step counts.
    return math.floor(round(steps, 9) + 0.5)


def bits_at(bits: int, relaxation: Relaxation | None, timesteps: Sequence[float]) -> dict[float, int]:
    """Returns the activation bits of every distinct timestep."""
    relaxed = relaxation.timesteps(timesteps) if relaxation else frozenset()
    return {t: relaxation.bits if relaxation and t in relaxed else bits for t in timesteps}


def average_bits(bits: int, relaxation: Relaxation | None, calls: Sequence[float]) -> float:
    """Computes the mean activation bits over all denoiser calls of a plan, from the timestep of each."""
    at = bits_at(bits, relaxation, calls)
    return sum(at[timestep] for timestep in calls) / len(calls)
