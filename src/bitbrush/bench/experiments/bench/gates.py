"""Gates: bounds on figures of the pairs that a candidate must keep, for the exit status of `bench`."""

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitbrush.bench.experiments.bench.figures import EntryFigures
from bitbrush.bench.pages.number_format import format_number
from bitbrush.bench.peers.registry import suggestion

_FORM = re.compile(r"\s*(?:(mean|median)\((.+)\)|([^<>()]+?))\s*(<=|>=|<|>)\s*(\S+)\s*")
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_STATISTICS: Mapping[str, Callable[[Sequence[float]], Any]] = {"mean": np.mean, "median": np.median}


@dataclass(frozen=True)
class Gate:
    """Bound of a metric: every pair's value, or a statistic of all pairs of a prompt set, must keep it.

    Args:
        text: The gate as it was given.
        metric: Short name of the metric.
        statistic: ``mean``, ``median``, or empty for every pair.
        relation: ``<=``, ``>=``, ``<`` or ``>``.
        bound: The bound.
    """

    text: str
    metric: str
    statistic: str
    relation: str
    bound: float

    @classmethod
    def parse(cls, text: str, metrics: Sequence[str]) -> "Gate":
        """Reads ``psnr>=25`` or ``median(psnr)>=30``.

        Args:
            text: The gate.
            metrics: Names of the metrics that the benchmark computes for each pair.

        Raises:
            ValueError: The text has another form, or there is no such metric.
        """
        form = _FORM.fullmatch(text)
        bound = _number(form[5]) if form else None
        if form is None or bound is None:
            raise ValueError(
                f"gate is {text!r}; expected METRIC<=NUMBER (or >=, < or >), such as psnr>=25 for every pair; "
                "median(METRIC) or mean(METRIC) for the pairs of a prompt set together"
            )
        known = {short_name(metric): metric for metric in metrics}
        name = short_name(form[2] or form[3])
        if name not in known:
            needs = "; LPIPS needs its weights: --lpips FILE" if name == "lpips" else suggestion(name, known)
            raise ValueError(f"gate {text!r} is of {name!r}; measured are {', '.join(known)}{needs}")
        return cls(text.strip(), name, form[1] or "", form[4], bound)

    def keeps(self, value: float) -> bool:
        """Whether a value keeps the bound; one that is not finite does not."""
        return math.isfinite(value) and _COMPARE[self.relation](value, self.bound)


@dataclass(frozen=True)
class FailingPair:
    """Pair beyond a gate's bound; a value that is not finite is None."""

    image: int
    prompt: str
    seed: int
    value: float | None


@dataclass(frozen=True)
class GateResult:
    """A gate on one candidate and prompt set.

    Args:
        gate: The gate as it was given.
        candidate: Candidate.
        prompt_set: Prompt set.
        passed: Whether the gate holds.
        statistic: ``mean``, ``median``, or ``worst`` of all pairs.
        value: The statistic; None where it is not finite.
        pairs: Number of pairs with a value.
        failing: Pairs beyond the bound, the worst first.
    """

    gate: str
    candidate: str
    prompt_set: str
    passed: bool
    statistic: str
    value: float | None
    pairs: int
    failing: tuple[FailingPair, ...]


def gate_results(gates: Sequence[Gate], candidates: Sequence[EntryFigures]) -> Iterator[GateResult]:
    """Yields the result of every gate on every measured candidate and prompt set."""
    for candidate in candidates:
        for prompt_set, of_set in candidate.sets.items():
            values = {short_name(metric): of_metric for metric, of_metric in of_set.image_values.items()}
            images = candidate.entry.images[prompt_set]
            for gate in gates:
                measured = {index: value for index, value in enumerate(values[gate.metric]) if value is not None}
                beyond = {index: value for index, value in measured.items() if not gate.keeps(value)}
                failing = [
                    FailingPair(index, images.prompts[index], images.seed(index), _finite(value))
                    for index, value in sorted(beyond.items(), key=lambda one: _badness(gate, one[1]), reverse=True)
                ]
                yield _result(gate, candidate.entry.name, prompt_set, list(measured.values()), failing)


def _result(
    gate: Gate, candidate: str, prompt_set: str, values: Sequence[float], failing: Sequence[FailingPair]
) -> GateResult:
    if gate.statistic:
        value = float(_STATISTICS[gate.statistic](values)) if values else math.nan
        passed = gate.keeps(value)
    else:
        value = max(values, key=lambda one: _badness(gate, one), default=math.nan)
        passed = bool(values) and not failing
    statistic = gate.statistic or "worst"
    of_pairs = _finite(value), len(values), tuple(failing)
    return GateResult(gate.text, candidate, prompt_set, passed, statistic, *of_pairs)


def gate_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of a results document's gates that do not hold, each followed by its failing pairs."""
    for result in document["gates"]:
        if not result["passed"]:
            yield failure_text(result)
            for pair in result["failing"]:
                yield f"  {_digits(pair['value'])}  image {pair['image']}, seed {pair['seed']}: {pair['prompt']}"


def failure_text(result: Mapping[str, Any]) -> str:
    """Describes a gate that does not hold in a sentence."""
    return f"{result['candidate']} fails {result['gate']} on {result['prompt_set']}: {standing(result)}"


def standing(result: Mapping[str, Any]) -> str:
    """Describes the figure that a gate bounds, and how many pairs are beyond the bound."""
    if not result["pairs"]:
        return "no pair has a value"
    pairs = f"{len(result['failing'])} of {result['pairs']} pairs beyond"
    return f"{result['statistic']} {_digits(result['value'])}, {pairs}"


def short_name(metric: str) -> str:
    """Returns the name of a metric in gates: ``PSNR (dB)`` is ``psnr``, ``image MSE`` is ``image-mse``."""
    return re.sub(r"\s*\(.*?\)", "", metric).strip().lower().replace(" ", "-")


def _badness(gate: Gate, value: float) -> float:
    """Returns a number that is larger the farther a value lies on the wrong side."""
    if not math.isfinite(value):
        return math.inf
    return value if gate.relation.startswith("<") else -value


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return _finite(number)


def _digits(value: float | None) -> str:
    return "not finite" if value is None else format_number(value, digits=4)
