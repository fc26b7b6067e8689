"""Checks of a sampling plan against a model's configuration, before its weights are loaded."""

import json
import os
from pathlib import Path
from typing import Any

from diffusers import SchedulerMixin
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from bitbrush.sources.model_names import MODEL_INDEX
from bitbrush.sources.models import ModelOptions, find_model
from bitbrush.sources.networks import component_class
from bitbrush.sources.schedulers import scheduler_class
from bitbrush.timeline.pipeline_call import require_callable
from bitbrush.timeline.plan import SamplingPlan

SCHEDULER_CONFIG = "scheduler/scheduler_config.json"


def require_plan(model: str | os.PathLike[str], options: ModelOptions, plan: SamplingPlan) -> None:
    """Checks that a full-precision model can be sampled by the plan.

    A single file, and a model whose index or scheduler is unusual, are checked once they are loaded.

    Args:
        model: Bundled name, path or hub id.
        options: Options of the model.
        plan: Sampling plan.

    Raises:
        UnknownModelError: No such model exists.
        ValueError: The pipeline or its scheduler does not take the plan; see
            :func:`bitbrush.timeline.pipeline_call.require_callable`.
    """
    require_plan_of_folder(find_model(model, options), plan, options.revision)


def require_plan_of_folder(source: str | os.PathLike[str], plan: SamplingPlan, revision: str | None = None) -> None:
    """Checks as :func:`require_plan` does, for a located folder (also of an artifact) or hub id."""
    index = _read(os.fspath(source), MODEL_INDEX, revision)
    pipeline = component_class("diffusers", str(index.get("_class_name")))
    entry = index.get("scheduler")
    scheduler = component_class(*entry) if isinstance(entry, list) and len(entry) == 2 and all(entry) else None
    if pipeline is None or scheduler is None or not issubclass(scheduler, SchedulerMixin):
        return
    kind: Any = scheduler_class(plan.scheduler, scheduler, pipeline.__name__)
    config = _read(os.fspath(source), SCHEDULER_CONFIG, revision)
    require_callable(pipeline, kind.from_config(config) if config else None, plan)


def _read(source: str, name: str, revision: str | None) -> dict[str, Any]:
    """Reads a configuration; an empty one if it is missing or damaged, which loading reports by name."""
    try:
        path = Path(source) / name if Path(source).exists() else Path(hf_hub_download(source, name, revision=revision))
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, HfHubHTTPError):
        return {}
    return content if isinstance(content, dict) else {}
