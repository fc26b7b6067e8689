"""Checks of a sampling plan against the pipeline's call and the scheduler; they need no weights."""

import copy
import inspect
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any, Union, get_args, get_origin

from bitbrush.timeline.plan import SamplingPlan, is_prompt_text

OWN_ARGUMENTS = frozenset(
    (
        "prompt",
        "num_inference_steps",
        "guidance_scale",
        "generator",
        "output_type",
        "return_dict",
        "num_images_per_prompt",
        "callback",
        "callback_steps",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
    )
)
"""Arguments of a pipeline's call that follow from the plan and the batch; users cannot set them."""
SIDES = ("height", "width")
ONE_SIDE_IGNORED = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion"
"""Module of the call that replaces both sides by its defaults unless both are given."""
LARGEST_SIDE = 16384
"""Largest side in pixels: far above that of any model's images, and below what exhausts memory at once."""
LARGEST_NUMBER = 2**53
"""Largest number up to which every whole number is exact in floating point; NaN is not below it."""
OWN_TIMESTEPS = ("timesteps", "sigmas")
"""Arguments that replace the timesteps which follow from the number of steps."""
STEP_LIMITS = ("num_train_timesteps", "original_inference_steps")
"""Entries of a scheduler's configuration that bound the number of its steps."""


def require_callable(pipeline: Any, scheduler: Any, plan: SamplingPlan, inputs: Collection[str] = ()) -> None:
    """Checks that a pipeline can be called by the plan, and obeys all of it.

    Args:
        pipeline: Class of the pipeline.
        scheduler: Scheduler that the plan runs; None if unknown.
        plan: Sampling plan.
        inputs: Names of further arguments with a value per prompt, such as ``image``.

    Raises:
        ValueError: The call has no such argument, or one that bitbrush sets; a value has another type, is out of range
            or would be ignored; or the scheduler has fewer steps.
    """
    call = pipeline.__call__
    require_taken(pipeline.__name__, call, [*dict(plan.arguments), *inputs])
    parameters = inspect.signature(call).parameters
    for name, value in plan.arguments:
        _require_value(pipeline.__name__, parameters[name], value)
    if call.__module__ == ONE_SIDE_IGNORED:
        _require_both_sides(pipeline.__name__, dict(plan.arguments))
    if scheduler is not None:
        _require_obeyed(pipeline.__name__, scheduler, dict(plan.arguments))
        if not any(name in dict(plan.arguments) for name in OWN_TIMESTEPS):
            require_steps(scheduler, plan.steps)


def require_taken(pipeline: str, call: Callable[..., Any], names: Collection[str]) -> None:
    """Checks that the pipeline's call has arguments of these names, which bitbrush leaves free.

    Raises:
        ValueError: It has no such argument; the message names the free ones.
    """
    parameters = inspect.signature(call).parameters.values()
    named = [
        parameter.name
        for parameter in parameters
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    free = [name for name in named if name not in OWN_ARGUMENTS and name != "self"]
    wrong = [name for name in names if name not in free]
    if wrong or "prompt" not in named:
        raise ValueError(f"{pipeline} cannot be given {[*wrong, 'prompt'][0]!r}; it takes {', '.join(free)}")


def require_steps(scheduler: Any, steps: int) -> None:
    """Checks that the scheduler has that many steps.

    Raises:
        ValueError: Its configuration has fewer.
    """
    config: Mapping[str, Any] = scheduler.config
    limits = {name: config[name] for name in STEP_LIMITS if config.get(name)}
    name = min(limits, key=lambda entry: limits[entry], default=None)
    if name is not None and steps > limits[name]:
        raise ValueError(
            f"steps is {steps}, and {type(scheduler).__name__} has at most {limits[name]} ({name}); lower --steps"
        )
    _require_known_timesteps(scheduler, steps)


def _require_known_timesteps(scheduler: Any, steps: int) -> None:
    """Checks that schedulers that look timesteps up in a table have all of them: ``steps_offset`` adds to the first."""
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None or hasattr(scheduler, "sigmas"):
        return
    trial = copy.deepcopy(scheduler)
    trial.set_timesteps(steps)
    largest = int(trial.timesteps.max())
    if largest >= len(table):
        raise ValueError(
            f"steps is {steps}: {type(scheduler).__name__} would begin at timestep {largest}, and knows those up to "
            f"{len(table) - 1} (steps_offset {scheduler.config.get('steps_offset', 0)}); lower --steps"
        )


def _require_value(pipeline: str, parameter: inspect.Parameter, value: Any) -> None:
    name, kind = parameter.name, parameter.annotation
    if is_prompt_text(name) or (value is None and parameter.default is None):
        return
    if not _fits(value, kind):
        raise ValueError(
            f"pipeline argument {name} is {value!r}; {pipeline} takes {inspect.formatannotation(kind)} there, given as "
            "NAME=VALUE with a number, text or list"
        )
    if name in SIDES and not 1 <= value <= LARGEST_SIDE:
        raise ValueError(f"pipeline argument {name} is {value}; it must be from 1 to {LARGEST_SIDE} pixels")


def _fits(value: Any, kind: Any) -> bool:
    """Tells whether a recipe's value is of the annotated type; an unknown annotation accepts everything."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        if origin is tuple and len(parts) > 1 and Ellipsis not in parts:  # tuple[int] stands for any number of them
            return len(value) == len(parts) and all(map(_fits, value, parts))
        return all(_fits(item, parts[0]) for item in value)
    if kind is inspect.Parameter.empty or kind is Any or isinstance(kind, str):
        return True
    if kind in (int, float):
        number = int if kind is int else int | float
        return isinstance(value, number) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER
    if kind is list:
        return isinstance(value, list | tuple)
    return isinstance(kind, type) and isinstance(value, kind)


def _require_both_sides(pipeline: str, arguments: Mapping[str, Any]) -> None:
    sides = [name for name in SIDES if arguments.get(name) is not None]
    if len(sides) == 1:
        raise ValueError(
            f"pipeline argument {sides[0]} is {arguments[sides[0]]}, which {pipeline} ignores without the other side; "
            "give height and width"
        )


def _require_obeyed(pipeline: str, scheduler: Any, arguments: Mapping[str, Any]) -> None:
    """Rejects ``eta`` for a scheduler that does not take it, since pipelines then leave it out silently."""
    if "eta" in arguments and "eta" not in inspect.signature(scheduler.step).parameters:
        raise ValueError(
            f"pipeline argument eta is {arguments['eta']}, which {pipeline} ignores with {type(scheduler).__name__}; "
            "leave it out, or give a scheduler that takes it, e.g. --scheduler ddim"
        )
