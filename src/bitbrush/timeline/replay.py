"""Pipeline calls whose denoiser calls are answered by a function, to disturb some and replay others."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import DenoiserCall, PromptBatch, cloned, start

Answer: TypeAlias = Callable[[int, DenoiserCall], Any]
"""Function from the index of a denoiser call and the call to the denoiser's output."""


def run_answered(
    pipe: Any, component: str, batch: PromptBatch, plan: SamplingPlan, answer: Answer, *, output_type: str = "latent"
) -> Any:
    """Runs ``pipe(batch)`` with denoiser outputs from ``answer``.

    Args:
        pipe: Pipeline.
        component: Name of its denoiser.
        batch: Prompts of the call.
        plan: Sampling plan.
        answer: Function that returns each denoiser call's output, a tuple.
        output_type: ``"latent"`` for the final latents, ``"np"`` for images.

    Returns:
        The pipeline's latents or images.
    """
    with start(pipe, component, batch, plan, output_type=output_type) as trajectory:
        index = 0
        while (call := trajectory.request) is not None:
            trajectory.answer(cloned(answer(index, call)))  # the pipeline may modify it in place
            index += 1
        return trajectory.result


def disturbed_answer(outputs: Sequence[Any], segment: range, disturbed: Answer, clean: Answer) -> Answer:
    """Returns an answer that disturbs the calls of ``segment``.

    Outputs before the segment come from ``outputs`` of an undisturbed run, so they cost no denoiser call. Those within
    it come from ``disturbed``, those after it from ``clean``.
    """

    def answer(index: int, call: DenoiserCall) -> Any:
        if index < segment.start:
            return outputs[index]
        return disturbed(index, call) if index in segment else clean(index, call)

    return answer
