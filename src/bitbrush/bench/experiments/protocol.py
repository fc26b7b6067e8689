"""Sampling plans and limits that experiments share."""

from collections.abc import Iterable, Mapping
from typing import Any

from diffusers import DiffusionPipeline

from bitbrush.artifact.manifest import is_artifact, read_manifest
from bitbrush.methods.recipe import Recipe
from bitbrush.timeline.plan import SamplingPlan

ANOTHER_SEED = "another seed"
"""Name of the floor: full precision against itself from other noise."""
FEWEST_IMAGES = 3
"""Smallest number of images of a prompt set from which intervals are computed."""


def plan_for(sources: Iterable[str], keys: Mapping[str, Any]) -> SamplingPlan:
    """Returns the sampling plan of the first artifact, updated by ``keys``.

    Args:
        sources: Artifacts and models; without an artifact the plan is a recipe's default.
        keys: Values of ``steps``, ``guidance_scale``, ``scheduler`` and ``pipeline_arguments``; None keeps the plan's.

    Returns:
        The sampling plan.

    Raises:
        ValueError: A value is invalid for its key.
    """
    artifact = next((source for source in sources if is_artifact(source)), None)
    recipe = Recipe().updated(read_manifest(artifact)["recipe"]) if artifact else Recipe()
    return recipe.plan_with(keys)


def plan_facts(pipe: DiffusionPipeline, plan: SamplingPlan) -> dict[str, Any]:
    """Lists what determines images in a plan, as JSON values.

    The scheduler's configuration is included, because two schedulers of one class may step differently.
    """
    scheduler = {key: value for key, value in dict(pipe.scheduler.config).items() if not key.startswith("_")}
    return {**plan_entries(pipe, plan), "scheduler_config": scheduler}


def plan_entries(pipe: DiffusionPipeline, plan: SamplingPlan) -> dict[str, Any]:
    """Lists a plan's entries in the protocol of a results document."""
    return {
        "scheduler": type(pipe.scheduler).__name__,
        "steps": plan.steps,
        "guidance_scale": plan.guidance_scale,
        "arguments": dict(plan.arguments),
    }
