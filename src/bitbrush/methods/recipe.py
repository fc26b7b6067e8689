"""Recipes: everything that determines the result of a quantization, except the model and the prompts."""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from bitbrush.calibration.relaxing import AUTO, MeasuredRelaxation, Relaxation
from bitbrush.methods.keys import (
    Decides,
    choice,
    key,
    keys_of,
    named_value,
    number,
    optional,
    or_none,
    patterns,
    text,
    whole,
)
from bitbrush.methods.registry import METHODS
from bitbrush.methods.removed import removed_setting, without_removed
from bitbrush.numerics.limits import (
    MAX_BITS,
    MAX_COUNT,
    MAX_SEED,
    MAX_STEPS,
    MAX_WEIGHT_BITS,
    MIN_WEIGHT_BITS,
    RangeEstimator,
    WeightRange,
)
from bitbrush.timeline.plan import PipelineArgument, SamplingPlan, is_prompt_text

MIN_ACTIVATION_BITS = 4
MAX_RANK = 256
DEFAULT_ACTIVATION_BITS = 8


class Networks(StrEnum):
    """Groups of networks that a recipe may quantize."""

    DENOISER = "denoiser"
    TEXT_ENCODERS = "text_encoders"
    VAE = "vae"


class Rounding(StrEnum):
    """Algorithm that rounds weights to integers."""

    NEAREST = "nearest"
    LEARNED = "learned"
    """Block reconstruction after error compensation."""
    ADAROUND = "adaround"
    """The procedure of PCR's authors, for reproduction."""


class WeightAllocation(StrEnum):
    """Allocation of weight bits to layers; ``weights`` is their average, weighted by the number of weights."""

    UNIFORM = "uniform"
    MEASURED = "measured"
    """2 to 8 bits by measured sensitivity."""


class SkipInputs(StrEnum):
    """Quantization of convolutions that read a U-Net's skip concatenation."""

    JOINT = "joint"
    """One scale for the whole input, as in all other layers."""
    SPLIT = "split"
    """Two layers, one for each half of the concatenation, with separate quantization parameters."""


class Smoothing(StrEnum):
    """Share of the inputs' scale per channel that moves into the weights before quantization."""

    NONE = "none"
    SMOOTHQUANT = "smoothquant"
    """The square root, as in SmoothQuant (arXiv 2211.10438) with alpha 0.5."""


class StepSizes(StrEnum):
    """Source of the activation step sizes."""

    OBSERVED = "observed"
    """The observed range, by ``activation_range``."""
    LEARNED = "learned"
    """Observed, then refined by gradients of the denoiser's error, for methods with one range for all steps."""


class FirstTokens(StrEnum):
    """Treatment of a prompt's start token in the keys and values of cross-attention."""

    AUTO = "auto"
    """KNOWN if the start token is an outlier among the tokens, otherwise QUANTIZED."""
    QUANTIZED = "quantized"
    KNOWN = "known"
    """Keys and values of the full-precision model; ranges cover only the other tokens."""


def _relax(name: str, value: Any) -> Relaxation | MeasuredRelaxation | None:
    match value:
        case None | "none":
            return None
        case Relaxation() | MeasuredRelaxation():
            return value
        case str():
            return MeasuredRelaxation.parse(value) if value.startswith(AUTO) else Relaxation.parse(value)
        case _:
            raise ValueError(f"{name} is {value!r}; expected START:END@BITS, e.g. 0.8:1.0@10, auto:BITS, or none")


def _networks(name: str, value: Any) -> tuple[Networks, ...]:
    """Parses names of groups of networks, a list or a text with commas between, in any order."""
    texts = [text.strip() for text in value.split(",")] if isinstance(value, str) else value
    names = list(texts) if isinstance(texts, list | tuple) else []
    unknown = [text for text in names if text not in list(Networks)]
    if unknown or Networks.DENOISER not in names or len(set(names)) != len(names):
        raise ValueError(
            f"{name} is {value!r}; it must name {Networks.DENOISER}, and may name {Networks.TEXT_ENCODERS} and "
            f"{Networks.VAE}, each once"
        )
    return tuple(group for group in Networks if group in names)


def _pipeline_arguments(name: str, value: Any) -> tuple[tuple[str, PipelineArgument], ...]:
    """Parses a table, or ``NAME=VALUE`` texts with values in JSON or as plain text."""
    if not isinstance(value, Mapping | list | tuple):
        raise ValueError(f"{name} is {value!r}; expected a table, or NAME=VALUE strings")
    pairs = value if isinstance(value, Mapping) else dict(_pair(item) for item in value)
    return tuple((argument, _pipeline_argument(argument, setting)) for argument, setting in pairs.items())


def _pipeline_argument(name: str, value: Any) -> PipelineArgument:
    values = value if isinstance(value, list | tuple) else (value,)
    if is_prompt_text(name) and not (value is None or (values and all(isinstance(item, str) for item in values))):
        raise ValueError(f"pipeline argument {name} is {value!r}; it must be a text, or a list of texts")
    numbers = [item for item in values if isinstance(item, float)]
    if not (
        all(isinstance(item, bool | int | float | str | None) for item in values) and all(map(math.isfinite, numbers))
    ):
        raise ValueError(
            f"pipeline argument {name} is {value!r}; it must be a number, a text, true or false, or a list of these "
            "(no infinity or NaN)"
        )
    return tuple(value) if isinstance(value, list) else value


def _pair(argument: Any) -> tuple[str, Any]:
    if isinstance(argument, tuple) and len(argument) == 2:
        return str(argument[0]), argument[1]
    pair = named_value(str(argument))
    if pair is None:
        raise ValueError(f"pipeline argument is {argument!r}; expected NAME=VALUE, e.g. height=768")
    return pair


@dataclass(frozen=True)
class Recipe:
    """Recipe keys, under the same names in recipe files, the command line and :func:`bitbrush.quantize`.

    Every field also accepts plain values as in a recipe file and stores the parsed value. The table in the docs is
    generated from these declarations.

    Raises:
        ValueError: A value is invalid for its key, or keys contradict each other.
    """

    method: str = key("pcr", text, f"Quantization method: {', '.join(METHODS)}.", decides=Decides.ACTIVATIONS)
    weights: int = key(
        4, whole(MIN_WEIGHT_BITS, MAX_WEIGHT_BITS), "Weight bits, 2 to 8, per output channel.", option=int
    )
    activations: int = key(
        DEFAULT_ACTIVATION_BITS,
        whole(MIN_ACTIVATION_BITS, MAX_BITS),
        "Activation bits, 4 to 16, per tensor.",
        option=int,
        decides=Decides.SENSITIVITIES,
        recalibrates=True,
    )
    relax: Relaxation | MeasuredRelaxation | None = key(
        None,
        _relax,
        "Steps with more activation bits, as fractions of all: 0.8:1.0@10; auto:8.2 for bits of layers and steps by "
        "measured sensitivity with that average; none.",
        plain=lambda relax: str(relax) if relax else "none",
        decides=Decides.ACTIVATIONS,
        recalibrates=True,
    )
    weight_allocation: WeightAllocation = key(
        WeightAllocation.UNIFORM,
        choice(WeightAllocation),
        "uniform, or measured for weight bits of layers by sensitivity, --weights on average.",
    )
    rounding: Rounding = key(
        Rounding.NEAREST,
        choice(Rounding),
        "nearest; learned by block reconstruction; or adaround, the procedure of PCR's authors.",
    )
    weight_range: WeightRange = key(
        WeightRange.MSE, choice(WeightRange), "Range of an output channel's weights: mse or min-max."
    )
    activation_range: RangeEstimator = key(
        RangeEstimator.L4,
        choice(RangeEstimator),
        "Range of activations: l4 (least fourth power of the error), mse, percentile or min-max.",
        decides=Decides.SENSITIVITIES,
        recalibrates=True,
    )
    step_sizes: StepSizes = key(
        StepSizes.OBSERVED,
        choice(StepSizes),
        "observed, or learned by gradients of the output's error (methods with one range for all steps).",
        decides=Decides.ACTIVATIONS,
    )
    first_token: FirstTokens = key(
        FirstTokens.QUANTIZED,
        choice(FirstTokens),
        "Keys and values of a text's start token: quantized; known, which is full precision's; or auto, known where "
        "its norm is twice the others' or more.",
        decides=Decides.BRANCHES,
    )
    low_rank: int | None = key(
        None,
        optional(whole(1, MAX_RANK)),
        "Rank of a branch beside every layer, with 16-bit activations, e.g. 16; none.",
        plain=or_none,
    )
    exclude: tuple[str, ...] = key(
        (), patterns, "Pattern of layer names to leave in floating point; repeatable.", option=list[str]
    )
    high_precision: tuple[str, ...] = key(
        (), patterns, "Pattern of layer names for 8-bit weights and 16-bit activations; repeatable.", option=list[str]
    )
    steps: int = key(50, whole(1, MAX_STEPS), "Denoising steps to calibrate for.", option=int, recalibrates=True)
    guidance_scale: float = key(7.5, number, "Guidance to calibrate for.", option=float, recalibrates=True)
    scheduler: str | None = key(
        None,
        optional(text, none="own"),
        "Scheduler to calibrate for: pndm, ddim, euler, dpmpp_2m, ... or a diffusers class; own for the model's.",
        plain=lambda scheduler: or_none(scheduler, "own"),
        recalibrates=True,
    )
    pipeline_arguments: tuple[tuple[str, PipelineArgument], ...] = key(
        (),
        _pipeline_arguments,
        "NAME=VALUE for the pipeline's call, e.g. height=768; repeatable.",
        plain=dict,
        option=list[str],
        recalibrates=True,
        flag="--pipeline-argument",
    )
    num_prompts: int = key(16, whole(1, MAX_COUNT), "Calibration prompts to use.", option=int, recalibrates=True)
    batch_size: int = key(16, whole(1, MAX_COUNT), "Prompts per denoiser call.", option=int, recalibrates=True)
    seed: int = key(0, whole(0, MAX_SEED), "Seed of the calibration's initial noise.", option=int, recalibrates=True)
    skip_inputs: SkipInputs = key(
        SkipInputs.JOINT,
        choice(SkipInputs),
        "joint, or split: convolutions that read a U-Net's skip concatenation become two.",
        decides=Decides.NETWORK,
    )
    smoothing: Smoothing = key(
        Smoothing.NONE,
        choice(Smoothing),
        "Scales that move from inputs into weights before quantization: none or smoothquant.",
        decides=Decides.NETWORK,
    )

    networks: tuple[Networks, ...] = key(
        (Networks.DENOISER,),
        _networks,
        "Networks to quantize, with commas between: denoiser, text_encoders, vae.",
        plain=",".join,
        decides=Decides.OTHER_NETWORKS,
        optional=True,
    )
    text_encoder_weights: int = key(
        8,
        whole(MIN_WEIGHT_BITS, MAX_WEIGHT_BITS),
        "Weight bits of text encoders, 2 to 8, where networks has them.",
        option=int,
        decides=Decides.OTHER_NETWORKS,
        optional=True,
    )

    def __post_init__(self) -> None:
        for name, declared in KEYS.items():
            object.__setattr__(self, name, declared.parse(name, getattr(self, name)))
        if isinstance(self.relax, Relaxation) and self.relax.bits <= self.activations:
            raise ValueError(
                f"relax is {self.relax}: {self.relax.bits} bits are no more than the {self.activations} bits of the "
                "other steps; give more, or leave relax out"
            )
        _ = self.plan  # validates the guidance

    @property
    def plan(self) -> SamplingPlan:
        """Sampling plan for which the recipe calibrates."""
        return SamplingPlan(self.steps, self.guidance_scale, self.scheduler, self.pipeline_arguments)

    def plan_with(self, keys: Mapping[str, Any]) -> SamplingPlan:
        """Returns the sampling plan updated by ``keys``; None keeps the recipe's value.

        Pipeline arguments are added to those of the recipe and override them.

        Raises:
            ValueError: A value is invalid for its key.
        """
        settings = {name: value for name, value in keys.items() if value is not None}
        arguments = _pipeline_arguments("pipeline_arguments", settings.get("pipeline_arguments", ()))
        return self.updated({**settings, "pipeline_arguments": dict(self.pipeline_arguments) | dict(arguments)}).plan

    @property
    def name(self) -> str:
        """Short form, e.g. ``pcr W4A8``."""
        return f"{self.method} W{self.weights}A{self.activations}"

    def updated(self, keys: Mapping[str, Any]) -> Self:
        """Returns the recipe updated by ``keys``, plain values as in a recipe file.

        Raises:
            ValueError: A key is unknown or removed, or its value is invalid.
        """
        if (removed := removed_setting(keys)) is not None:
            raise ValueError(f"{removed} was removed: it did not help (docs/results.md); leave it out")
        keys = without_removed(keys)
        unknown = [name for name in keys if name not in KEYS]
        if unknown:
            raise ValueError(f"unknown recipe key {unknown[0]!r} = {keys[unknown[0]]!r}; known are {', '.join(KEYS)}")
        return replace(self, **keys)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values that :meth:`updated` reads back; optional keys only where they differ."""
        defaults = type(self).__dataclass_fields__
        kept = {
            name: declared
            for name, declared in KEYS.items()
            if not declared.optional or getattr(self, name) != defaults[name].default
        }
        values = {name: declared.plain(getattr(self, name)) for name, declared in kept.items()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


KEYS = keys_of(Recipe)
"""Declarations of all keys by name."""


def read_recipe(path: Path) -> dict[str, Any]:
    """Reads the keys of a recipe file, TOML or JSON by its suffix.

    Args:
        path: Path of the file.

    Returns:
        Plain values by key.

    Raises:
        ValueError: The file cannot be read or holds no table; the message names it.
    """
    try:
        content = path.read_text(encoding="utf-8")
        keys = json.loads(content) if path.suffix == ".json" else tomllib.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"recipe {path} cannot be read: {error}") from error
    if not isinstance(keys, dict):
        raise ValueError(f"recipe {path} holds a {type(keys).__name__}; a table of keys is needed")
    return keys


def check_activation_bits(bits: Any) -> int:
    """Returns ``bits`` if they are a valid number of activation bits; raises ValueError otherwise."""
    return int(KEYS["activations"].parse("activations", bits))
