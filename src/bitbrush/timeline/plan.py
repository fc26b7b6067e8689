"""Sampling plan that a quantized denoiser is calibrated for."""

import re
from dataclasses import dataclass
from typing import TypeAlias

PipelineArgument: TypeAlias = bool | int | float | str | tuple[bool | int | float | str, ...] | None
"""Type of a recipe's values for arguments of the pipeline's call."""
LARGEST_GUIDANCE = 1000
"""Largest guidance scale: far above any in use, and below what overflows float16 latents at once."""
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
        if not 0 <= self.guidance_scale <= LARGEST_GUIDANCE:  # NaN is not either
            raise ValueError(
                f"guidance_scale is {self.guidance_scale}; it must be a number from 0 to {LARGEST_GUIDANCE}"
            )


def is_prompt_text(argument: str) -> bool:
    """Tells whether an argument of a pipeline's call is a text with one value per prompt."""
    return _PROMPT_TEXT.fullmatch(argument) is not None
