"""Effect of errors in some denoiser calls on the final latents, measured by running the rest of the pipeline."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import DenoiserCall, PromptBatch, start

Answer: TypeAlias = Callable[[int, DenoiserCall], Any]
"""Function from the index of a denoiser call and the call to the denoiser's output."""


@dataclass(frozen=True)
class CleanRun:
    """Undisturbed run of one batch: its denoiser calls, their outputs, and the final latents."""

    batch: PromptBatch
    calls: tuple[DenoiserCall, ...]
    outputs: tuple[Any, ...]
    latents: Tensor


@dataclass(frozen=True)
class Propagation:
    """Pipeline whose denoiser calls are answered by a callback."""

    pipe: Any
    component: str
    plan: SamplingPlan

    def clean(self, batch: PromptBatch, answer: Answer) -> CleanRun:
        """Runs the pipeline undisturbed and records its calls, outputs and final latents."""
        calls: list[DenoiserCall] = []
        outputs: list[Any] = []

        def kept(index: int, call: DenoiserCall) -> Any:
            calls.append(call)
            outputs.append(answer(index, call))
            return outputs[-1]

        latents = self._run(batch, kept)
        return CleanRun(batch, tuple(calls), tuple(outputs), latents)

    def effect(self, run: CleanRun, segment: range, disturbed: Answer, clean: Answer) -> Tensor:
        """Measures the squared change of the final latents, (prompts,), from disturbing the calls of ``segment``.

        Outputs before the segment come from ``run``, within it from ``disturbed``, after it from ``clean``.
        """

        def answer(index: int, call: DenoiserCall) -> Any:
            if index < segment.start:
                return run.outputs[index]
            return disturbed(index, call) if index in segment else clean(index, call)

        return (self._run(run.batch, answer) - run.latents).flatten(1).square().sum(1)

    def _run(self, batch: PromptBatch, answer: Answer) -> Tensor:
        with start(self.pipe, self.component, batch, self.plan) as trajectory:
            index = 0
            while (call := trajectory.request) is not None:
                trajectory.answer(_copied(answer(index, call)))
                index += 1
            return torch.as_tensor(trajectory.result)


def _copied(output: Any) -> Any:
    """Copies the output, because the pipeline may modify it in place."""
    return tuple(part.clone() if isinstance(part, Tensor) else part for part in output)
