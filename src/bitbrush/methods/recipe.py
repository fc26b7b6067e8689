"""A recipe: everything that decides what a quantization yields, apart from the model and the prompts."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from bitbrush.methods.removed import removed_setting, without_removed
from bitbrush.numerics.affine import MAX_BITS
from bitbrush.numerics.ranges import RangeEstimator
from bitbrush.numerics.weights import MAX_WEIGHT_BITS, MIN_WEIGHT_BITS, WeightRange
from bitbrush.timeline.plan import AUTO, MeasuredRelaxation, PipelineArgument, Relaxation, SamplingPlan

MIN_ACTIVATION_BITS = 4
MAX_RANK = 256
DEFAULT_ACTIVATION_BITS = 8


class Rounding(StrEnum):
    """How weights become integers."""

    NEAREST = "nearest"
    LEARNED = "learned"
    ADAROUND = "adaround"
    """Learned as PCR's authors do, for reproduction."""


class WeightAllocation(StrEnum):
    """How weight bits are given to layers; ``weights`` are their average, by number of weights."""

    UNIFORM = "uniform"
    """The same for all."""
    MEASURED = "measured"
    """From 2 to 8 by measured sensitivity."""


class SkipInputs(StrEnum):
    """How convolutions that read a U-Net's skip concatenation are quantized."""

    JOINT = "joint"
    """As all others, with one grid for their input."""
    SPLIT = "split"
    """As two, one for each half of the concatenation, with grids and weight scales of their own."""


class Smoothing(StrEnum):
    """How much of the inputs' scale, channel by channel, moves into the weights before anything is quantized."""

    NONE = "none"
    SMOOTHQUANT = "smoothquant"
    """The square root: as much as stays."""


class StepSizes(StrEnum):
    """Where the step sizes of activations come from."""

    OBSERVED = "observed"
    """The range of what was seen, by ``activation_range``."""
    LEARNED = "learned"
    """From there on by gradients of the denoiser's error."""


class FirstTokens(StrEnum):
    """What cross-attention's keys and values make of the start token of a text."""

    QUANTIZED = "quantized"
    KNOWN = "known"
    """What full precision makes of it; ranges are those of the other tokens."""


@dataclass(frozen=True)
class Recipe:
    """Keys of a recipe file, of the command line and of :func:`bitbrush.quantize`, all of the same names.

    ``weights``, ``activations``: bits. ``relax``: ``START:END@BITS`` as fractions of the steps, ``auto:BITS`` for
    bits of layers and steps by measured sensitivity with that average (instead of ``activations``), None for none.
    ``weight_allocation``: measured for weight bits of layers by sensitivity, ``weights`` on average. ``step_sizes``:
    learned for one grid for all steps that leaves the denoiser's output the least error. ``first_token``: known leaves
    a text's start token out of the quantization of cross-attention's keys and values.
    ``steps``, ``guidance_scale``, ``scheduler`` (a diffusers class name; None: the pipeline's own) and
    ``pipeline_arguments`` (a table, e.g. ``{height = 768}``, or ``NAME=VALUE`` strings): the sampling plan of the
    calibration. ``exclude``: patterns of layer names left in floating point; ``fine``: of layers that get 8-bit weights
    and 16-bit activations, as those next to the latents do. ``num_prompts`` calibration prompts are run ``batch_size``
    at a time; ``seed`` and the prompt decide its initial noise. ``skip_inputs``: split for convolutions that read a
    U-Net's skip concatenation to be quantized as two. ``smoothing``: of the denoiser's channels; the smoothed denoiser
    is then the one that is quantized.
    ``low_rank``: of a branch beside every layer, of 16-bit activations, None for none.
    """

    method: str = "pcr"
    weights: int = 4
    activations: int = DEFAULT_ACTIVATION_BITS
    relax: Relaxation | MeasuredRelaxation | None = None
    weight_allocation: WeightAllocation = WeightAllocation.UNIFORM
    rounding: Rounding = Rounding.NEAREST
    weight_range: WeightRange = WeightRange.MSE
    activation_range: RangeEstimator = RangeEstimator.L4
    step_sizes: StepSizes = StepSizes.OBSERVED
    first_token: FirstTokens = FirstTokens.QUANTIZED
    low_rank: int | None = None
    exclude: tuple[str, ...] = ()
    fine: tuple[str, ...] = ()
    steps: int = 50
    guidance_scale: float = 7.5
    scheduler: str | None = None
    pipeline_arguments: tuple[tuple[str, PipelineArgument], ...] = ()
    num_prompts: int = 16
    batch_size: int = 16
    seed: int = 0
    skip_inputs: SkipInputs = SkipInputs.JOINT
    smoothing: Smoothing = Smoothing.NONE

    def __post_init__(self) -> None:
        _require("weights", self.weights, MIN_WEIGHT_BITS, MAX_WEIGHT_BITS)
        check_activation_bits(self.activations)
        if self.low_rank is not None:
            _require("low_rank", self.low_rank, 1, MAX_RANK)
        _require("steps", self.steps, 1, None)
        _require("num_prompts", self.num_prompts, 1, None)
        _require("batch_size", self.batch_size, 1, None)
        _require("seed", self.seed, 0, None)
        if isinstance(self.relax, Relaxation) and self.relax.bits <= self.activations:
            raise ValueError(
                f"relax is {self.relax}: {self.relax.bits} bits are no more than the {self.activations} bits of the "
                "other steps; give more, or leave relax out"
            )
        _ = self.plan  # checks the guidance

    @property
    def plan(self) -> SamplingPlan:
        return SamplingPlan(self.steps, self.guidance_scale, self.scheduler, self.pipeline_arguments)

    @property
    def name(self) -> str:
        """Short form, e.g. ``pcr W4A8``."""
        return f"{self.method} W{self.weights}A{self.activations}"

    def updated(self, keys: Mapping[str, Any]) -> Self:
        """With the given keys, plain values as in a recipe file. Raises ValueError for an unknown key or bad value."""
        if (removed := removed_setting(keys)) is not None:
            raise ValueError(f"{removed} was removed: it did not help (docs/results.md); leave it out")
        keys = without_removed(keys)
        known = [field.name for field in fields(self)]
        unknown = [key for key in keys if key not in known]
        if unknown:
            raise ValueError(f"unknown recipe key {unknown[0]!r} = {keys[unknown[0]]!r}; known are {', '.join(known)}")
        return replace(self, **{key: _parse(key, value) for key, value in keys.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values that :meth:`updated` reads back."""
        values = asdict(self)
        values["relax"] = str(self.relax) if self.relax else "none"
        values["low_rank"] = self.low_rank or "none"
        values["scheduler"] = self.scheduler or "own"
        values["pipeline_arguments"] = dict(self.pipeline_arguments)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys of a recipe file, TOML or JSON by its suffix. Raises ValueError naming the file."""
    try:
        text = path.read_text(encoding="utf-8")
        keys = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"recipe {path} cannot be read: {error}") from error
    if not isinstance(keys, dict):
        raise ValueError(f"recipe {path} holds a {type(keys).__name__}; a table of keys is needed")
    return keys


def check_activation_bits(bits: Any) -> int:
    """``bits`` itself if activations can have so many. Raises ValueError otherwise."""
    _require("activations", bits, MIN_ACTIVATION_BITS, MAX_BITS)
    return int(bits)


def _require(key: str, value: Any, low: int, high: int | None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{key} is {value!r}; it must be a whole number {limit}")


CHOICES: Mapping[str, type[StrEnum]] = {
    "weight_allocation": WeightAllocation,
    "rounding": Rounding,
    "weight_range": WeightRange,
    "activation_range": RangeEstimator,
    "skip_inputs": SkipInputs,
    "smoothing": Smoothing,
    "step_sizes": StepSizes,
    "first_token": FirstTokens,
}


def _parse(key: str, value: Any) -> Any:
    if key in CHOICES:
        return _choice(key, value, CHOICES[key])
    match key:
        case "relax":
            return _relax(value)
        case "scheduler":
            return None if value in (None, "own") else str(value)
        case "pipeline_arguments":
            return _pipeline_arguments(value)
        case "low_rank":
            return None if value in (None, "none") else int(value) if str(value).isdecimal() else value
        case "exclude" | "fine":
            return _patterns(key, value)
        case "guidance_scale":
            return _number(key, value)
        case _:
            return value


def _relax(value: Any) -> Relaxation | MeasuredRelaxation | None:
    match value:
        case None | "none":
            return None
        case Relaxation() | MeasuredRelaxation():
            return value
        case str():
            return MeasuredRelaxation.parse(value) if value.startswith(AUTO) else Relaxation.parse(value)
        case _:
            raise ValueError(f"relax is {value!r}; expected START:END@BITS, e.g. 0.8:1.0@10, auto:BITS, or none")


def _patterns(key: str, value: Any) -> tuple[str, ...]:
    patterns = (value,) if isinstance(value, str) else value
    if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"{key} is {value!r}; it must be a list of patterns of layer names")
    return tuple(patterns)


def _pipeline_arguments(value: Any) -> tuple[tuple[str, PipelineArgument], ...]:
    """From a table, or from ``NAME=VALUE`` strings whose values are read as JSON, or else as they stand."""
    if not isinstance(value, Mapping | list | tuple):
        raise ValueError(f"pipeline_arguments is {value!r}; expected a table, or NAME=VALUE strings")
    pairs = value if isinstance(value, Mapping) else dict(_pair(text) for text in value)
    return tuple((name, _pipeline_argument(name, argument)) for name, argument in pairs.items())


def _pipeline_argument(name: str, value: Any) -> PipelineArgument:
    values = value if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(one, bool | int | float | str | None) for one in values):
        raise ValueError(
            f"pipeline argument {name} is {value!r}; it must be a number, a text, true or false, or a list of these"
        )
    return tuple(value) if isinstance(value, list) else value


def _pair(text: Any) -> tuple[str, Any]:
    if isinstance(text, tuple) and len(text) == 2:
        return str(text[0]), text[1]
    pair = named_value(str(text))
    if pair is None:
        raise ValueError(f"pipeline argument is {text!r}; expected NAME=VALUE, e.g. height=768")
    return pair


def named_value(text: str) -> tuple[str, Any] | None:
    """Of ``NAME=VALUE``, the value read as JSON, or else as it stands; None for a text of another form."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        return None
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _number(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key} is {value!r}; it must be a number") from None


def _choice(key: str, value: Any, choices: type[StrEnum]) -> StrEnum:
    if value not in list(choices):
        raise ValueError(f"{key} is {value!r}; choose from {', '.join(choices)}")
    return choices(value)
