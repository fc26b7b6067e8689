"""Effect of errors in some denoiser calls on the final latents, measured by running the rest of the pipeline."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.replay import Answer, disturbed_answer, run_answered
from bitbrush.timeline.trajectory import DenoiserCall, PromptBatch


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

        def record(index: int, call: DenoiserCall) -> Any:
            calls.append(call)
            outputs.append(answer(index, call))
            return outputs[-1]

        latents = self._run(batch, record)
        return CleanRun(batch, tuple(calls), tuple(outputs), latents)

    def effect(self, run: CleanRun, segment: range, disturbed: Answer, clean: Answer) -> Tensor:
        """Measures the squared change of the final latents, (prompts,), from disturbing the calls of ``segment``.

        Outputs before the segment come from ``run``, within it from ``disturbed``, after it from ``clean``.
        """
        latents = self._run(run.batch, disturbed_answer(run.outputs, segment, disturbed, clean))
        return (latents - run.latents).flatten(1).square().sum(1)

    def _run(self, batch: PromptBatch, answer: Answer) -> Tensor:
        return torch.as_tensor(run_answered(self.pipe, self.component, batch, self.plan, answer))
