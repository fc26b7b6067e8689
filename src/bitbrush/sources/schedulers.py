"""Schedulers by name, and which of them fit a model."""

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
"""Of models that predict noise, the picture or a velocity between them, on a table of noise levels."""

FLOW_NAMES = {
    "flow_euler": "FlowMatchEulerDiscreteScheduler",
    "flow_heun": "FlowMatchHeunDiscreteScheduler",
    "flow_lcm": "FlowMatchLCMScheduler",
}
"""Of flow-matching models, such as SD3 and FLUX."""

STOCHASTIC = ("ddpm", "euler_a", "lcm", "flow_lcm")
"""Those that add noise in every step."""


def with_scheduler(pipe: DiffusionPipeline, name: str | None) -> DiffusionPipeline:
    """The pipeline with another scheduler made from its own scheduler's configuration; itself if ``name`` is None.

    ``name``: a short name or the class's. Raises ValueError for an unknown one, and for one of the other kind of model
    (flow matching or not): its configuration would say nothing to it.
    """
    if name is None:
        return pipe
    scheduler_class = getattr(diffusers, class_name(name), None)
    if not (
        isinstance(scheduler_class, type)
        and issubclass(scheduler_class, SchedulerMixin)
        and issubclass(scheduler_class, ConfigMixin)
    ):
        known = ", ".join((*SHORT_NAMES, *FLOW_NAMES))
        raise ValueError(f"scheduler is {name!r}; known are {known} and diffusers' class names")
    own = type(pipe.scheduler)
    if _is_of_flow(scheduler_class) != _is_of_flow(own):
        kind = "a flow-matching model" if _is_of_flow(own) else "no flow-matching model"
        raise ValueError(
            f"scheduler is {name!r}, but {type(pipe).__name__} with its {own.__name__} is {kind}; "
            f"those that fit are {', '.join(names_for(pipe))}"
        )
    other = copy.copy(pipe)
    config = dict(pipe.scheduler.config)
    if "clip_sample" in inspect.signature(scheduler_class).parameters:
        # Made for pixels in [-1, 1], and on by default: latents are larger. PNDM's configurations do not mention it.
        config.setdefault("clip_sample", False)
    other.scheduler = scheduler_class.from_config(config)  # type: ignore[attr-defined]
    return other


def names_for(pipe: DiffusionPipeline) -> tuple[str, ...]:
    """The short names of the schedulers of this pipeline's kind of model. Its call may still want another."""
    return tuple(FLOW_NAMES if _is_of_flow(type(pipe.scheduler)) else SHORT_NAMES)


def class_name(name: str) -> str:
    """Of a short name the class's; any other name is one."""
    return {**SHORT_NAMES, **FLOW_NAMES}.get(name, name)


def _is_of_flow(scheduler_class: type) -> bool:
    return scheduler_class.__name__.startswith("FlowMatch")
