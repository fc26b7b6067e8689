"""Schedulers by name."""

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


def with_scheduler(pipe: DiffusionPipeline, name: str | None) -> DiffusionPipeline:
    """The pipeline with another scheduler made from its own scheduler's configuration; itself if ``name`` is None.

    ``name``: a short name or the class's. Raises ValueError for an unknown one.
    """
    if name is None:
        return pipe
    scheduler_class = getattr(diffusers, SHORT_NAMES.get(name, name), None)
    if not (
        isinstance(scheduler_class, type)
        and issubclass(scheduler_class, SchedulerMixin)
        and issubclass(scheduler_class, ConfigMixin)
    ):
        raise ValueError(f"scheduler is {name!r}; known are {', '.join(SHORT_NAMES)} and diffusers' class names")
    other = copy.copy(pipe)
    config = dict(pipe.scheduler.config)
    if "clip_sample" in inspect.signature(scheduler_class).parameters:
        # Made for pixels in [-1, 1], and on by default: latents are larger. PNDM's configurations do not mention it.
        config.setdefault("clip_sample", False)
    other.scheduler = scheduler_class.from_config(config)  # type: ignore[attr-defined]
    return other
