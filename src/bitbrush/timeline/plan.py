"""Sampling plan that a quantized denoiser is calibrated for."""

import math
import re
from dataclasses import dataclass
from typing import TypeAlias

PipelineArgument: TypeAlias = bool | int | float | str | tuple[bool | int | float | str, ...] | None
"""Type of a recipe's values for arguments of the pipeline's call."""
_PROMPT_TEXT = re.compile(r"(negative_)?prompt(_\d+)?")


@dataclass(frozen=True)
class SamplingPlan:
    """Settings of image generation: steps, guidance and, if it replaces the pipeline's own, the scheduler's class.

    ``arguments`` are further arguments of the pipeline's call by name, e.g. ``("height", 768)`` or ``("strength",
    0.5)``.
    """

    steps: int = 50
    guidance_scale: float = 7.5
    scheduler: str | None = None
    arguments: tuple[tuple[str, PipelineArgument], ...] = ()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; at least 1 is needed")
        if not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; it must be a finite number >= 0")


def is_prompt_text(argument: str) -> bool:
    """Tells whether an argument of a pipeline's call is a text with one value per prompt."""
    return _PROMPT_TEXT.fullmatch(argument) is not None
