"""What an ablation is to find out, and whose its cells are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusers import DiffusionPipeline

from bitbrush.bench.experiments.ablate.recipes import Setting, given_keys
from bitbrush.bench.experiments.candidates import Subject
from bitbrush.bench.experiments.protocol import FEWEST_IMAGES, plan_facts
from bitbrush.bench.networks.clip import Clip
from bitbrush.runtime.choose import Choice
from bitbrush.session.digests import json_digest
from bitbrush.sources.input_images import inputs_digest
from bitbrush.sources.models import ModelOptions
from bitbrush.sources.prompts import PromptSet
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import PromptBatch, prompt_batches

SCHEMA_VERSION = 1
"""Version of how full precision's images are made and stored."""
CELL_VERSION = 2
"""Version of a cell's file and of how its values are computed."""


@dataclass(frozen=True)
class Protocol:
    """What is the same for every recipe.

    ``num_images`` held-out prompts of each set are drawn with ``seed``, and once more with the next (the floor);
    ``calibration``: prompts to quantize with; ``execution``: names of what executes, beside the ``choice`` itself.
    """

    plan: SamplingPlan
    sets: tuple[PromptSet, ...]
    num_images: int
    calibration: tuple[str, ...]
    judge: Clip
    choice: Choice
    execution: str
    seed: int = 1
    batch_size: int = 16
    inputs: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    generic: bool = False

    def __post_init__(self) -> None:
        for one in self.sets:
            if len(one.prompts) < self.num_images:
                raise ValueError(
                    f"prompt set {one.name!r} has {len(one.prompts)} prompts, num_images is {self.num_images}; "
                    "lower --num-images or give more prompts"
                )
        if self.num_images < FEWEST_IMAGES:
            raise ValueError(
                f"num_images is {self.num_images}; intervals need at least {FEWEST_IMAGES} prompts of each set"
            )
        both = [prompt for one in self.sets for prompt in self.prompts(one) if prompt in set(self.calibration)]
        if both:
            raise ValueError(
                f"prompt {both[0]!r} is to be measured on and to calibrate with ({len(both)} such); give held-out ones"
            )

    def prompts(self, one: PromptSet) -> tuple[str, ...]:
        return one.prompts[: self.num_images]

    def batches(self, one: PromptSet, seed: int) -> list[PromptBatch]:
        return prompt_batches(self.prompts(one), seed, self.batch_size, inputs=self.inputs)


@dataclass(frozen=True)
class AblationJob:
    """``pipe``: the full-precision model with the plan's scheduler; ``reference``: what is told of it."""

    model: str
    options: ModelOptions
    reference: Subject
    pipe: DiffusionPipeline
    settings: tuple[Setting, ...]
    protocol: Protocol

    def facts(self) -> dict[str, Any]:
        """What the artifacts depend on beside their recipes, as JSON values."""
        protocol = self.protocol
        return {
            "model": self.reference.digest,
            "plan": plan_facts(self.pipe, protocol.plan),
            "set of calibration prompts": json_digest([*protocol.calibration, inputs_digest(protocol.inputs)]),
            "way to choose layers": "generic" if protocol.generic else "by family",
        }

    def images_digest(self) -> str:
        """Returns a digest of everything that determines images and values beside an artifact."""
        protocol = self.protocol
        told = [[one.name, one.domain.value, *protocol.prompts(one)] for one in protocol.sets]
        network = protocol.judge.digest
        return json_digest([SCHEMA_VERSION, self.facts(), told, protocol.seed, protocol.batch_size, network])

    def cell_digest(self, setting: Setting | None) -> str:
        """Returns a digest of everything that determines a cell's values; None is the cell of another seed."""
        recipe = setting and [given_keys(setting.recipe), self.protocol.execution]
        return json_digest([CELL_VERSION, self.images_digest(), recipe])
