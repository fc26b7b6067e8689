"""Schedulers by name, and their compatibility with models."""

import copy
import inspect

import diffusers
from diffusers import ConfigMixin, DiffusionPipeline, SchedulerMixin

SHORT_NAMES = {
    "pndm": "PNDMScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
}
"""Schedulers for models that predict noise, the image or a velocity between them, on a table of noise levels."""

FLOW_NAMES = {
    "flow_euler": "FlowMatchEulerDiscreteScheduler",
    "flow_heun": "FlowMatchHeunDiscreteScheduler",
    "flow_lcm": "FlowMatchLCMScheduler",
}
"""Schedulers for flow-matching models, such as SD3 and FLUX."""

STOCHASTIC = ("ddpm", "euler_a", "lcm", "flow_lcm")
"""Schedulers that add noise in every step."""


def with_scheduler(pipe: DiffusionPipeline, name: str | None) -> DiffusionPipeline:
    """Returns a copy of the pipeline with another scheduler, created from its own scheduler's configuration.

    Args:
        pipe: Pipeline.
        name: Short name or class name; None returns the pipeline itself.

    Raises:
        ValueError: The scheduler is unknown, or is for the other kind of model (flow matching or not), to which the
            configuration means nothing.
    """
    if name is None:
        return pipe
    kind = scheduler_class(name, type(pipe.scheduler), type(pipe).__name__)
    other = copy.copy(pipe)
    config = dict(pipe.scheduler.config)
    if "clip_sample" in inspect.signature(kind).parameters:
        # Clipping is for pixels in [-1, 1], on by default; latents are larger. PNDM's configurations do not mention it.
        config.setdefault("clip_sample", False)
    other.scheduler = kind.from_config(config)  # type: ignore[attr-defined]
    return other


def scheduler_class(name: str | None, default: type, pipeline: str) -> type:
    """Finds a scheduler's class by its short name or class name.

    Args:
        name: Short name or class name; None for the pipeline's own.
        default: Class of the pipeline's scheduler.
        pipeline: Name of the pipeline's class, for messages.

    Raises:
        ValueError: The scheduler is unknown, or is for the other kind of model (flow matching or not).
    """
    if name is None:
        return default
    kind = getattr(diffusers, class_name(name), None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin) and issubclass(kind, ConfigMixin)):
        names = ", ".join((*SHORT_NAMES, *FLOW_NAMES))
        raise ValueError(f"scheduler is {name!r}; known are {names} and diffusers' class names")
    if _is_of_flow(kind) != _is_of_flow(default):
        model = "a flow-matching model" if _is_of_flow(default) else "no flow-matching model"
        raise ValueError(
            f"scheduler is {name!r}, but {pipeline} with its {default.__name__} is {model}; "
            f"those that fit are {', '.join(_names_for(default))}"
        )
    return kind


def names_for(pipe: DiffusionPipeline) -> tuple[str, ...]:
    """Returns the short names of schedulers for the pipeline's kind of model; its call may still require another."""
    return _names_for(type(pipe.scheduler))


def _names_for(scheduler: type) -> tuple[str, ...]:
    return tuple(FLOW_NAMES if _is_of_flow(scheduler) else SHORT_NAMES)


def class_name(name: str) -> str:
    """Resolves a short scheduler name to its diffusers class name; other names stay as they are."""
    return {**SHORT_NAMES, **FLOW_NAMES}.get(name, name)


def _is_of_flow(scheduler_class: type) -> bool:
    return scheduler_class.__name__.startswith("FlowMatch")
