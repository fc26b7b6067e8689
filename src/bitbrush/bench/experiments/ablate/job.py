"""Job of an ablation: its settings, and the digests that its cells are named by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusers import DiffusionPipeline

from bitbrush.bench.experiments.ablate.recipes import Setting, given_keys
from bitbrush.bench.experiments.protocol import FEWEST_IMAGES, plan_facts
from bitbrush.bench.experiments.subject import Subject
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
    """Settings that all recipes share.

    Args:
        plan: Sampling plan.
        sets: Prompt sets.
        num_images: Held-out prompts of each set.
        calibration: Prompts to quantize with.
        judge: CLIP of the CLIP scores.
        choice: Runtime of the artifacts.
        execution: Name of the runtime and its type.
        seed: Seed of the images; the floor has the next one.
        batch_size: Prompts per denoiser call.
        inputs: Further pipeline arguments, used in turn for the prompts.
        generic: Whether to quantize the layers of any denoiser without knowledge of its architecture.
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
        for prompts in self.sets:
            if len(prompts.prompts) < self.num_images:
                raise ValueError(
                    f"prompt set {prompts.name!r} has {len(prompts.prompts)} prompts, num_images is {self.num_images}; "
                    "lower --num-images or give more prompts"
                )
        if self.num_images < FEWEST_IMAGES:
            raise ValueError(
                f"num_images is {self.num_images}; intervals need at least {FEWEST_IMAGES} prompts of each set"
            )
        calibration = set(self.calibration)
        both = [text for prompts in self.sets for text in self.prompts(prompts) if text in calibration]
        if both:
            raise ValueError(
                f"prompt {both[0]!r} is to be measured on and to calibrate with ({len(both)} such); give held-out ones"
            )

    def prompts(self, prompts: PromptSet) -> tuple[str, ...]:
        """Returns the prompts of a set that are used."""
        return prompts.prompts[: self.num_images]

    def batches(self, prompts: PromptSet, seed: int) -> list[PromptBatch]:
        """Returns the batches of a prompt set."""
        return prompt_batches(self.prompts(prompts), seed, self.batch_size, inputs=self.inputs)


@dataclass(frozen=True)
class AblationJob:
    """Ablation of one model.

    Args:
        model: Full-precision model.
        options: Loading options of the model.
        reference: Description of the model.
        pipe: Full-precision pipeline with the plan's scheduler.
        settings: Recipes at every bit setting.
        protocol: Settings that all recipes share.
    """

    model: str
    options: ModelOptions
    reference: Subject
    pipe: DiffusionPipeline
    settings: tuple[Setting, ...]
    protocol: Protocol

    def facts(self) -> dict[str, Any]:
        """Lists what artifacts depend on beside their recipes, as JSON values."""
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
        sets = [[prompts.name, prompts.domain.value, *protocol.prompts(prompts)] for prompts in protocol.sets]
        network = protocol.judge.digest
        return json_digest([SCHEMA_VERSION, self.facts(), sets, protocol.seed, protocol.batch_size, network])

    def cell_digest(self, setting: Setting | None) -> str:
        """Returns a digest of everything that determines a cell's values; None is the cell of another seed."""
        recipe = setting and [given_keys(setting.recipe), self.protocol.execution]
        return json_digest([CELL_VERSION, self.images_digest(), recipe])
