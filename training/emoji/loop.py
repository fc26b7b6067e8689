"""The training loop that CLIP, VAE and denoiser share: seeded by step, resumable, with an ETA."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Generator, Tensor, nn

from training.emoji.checkpoint import TrainingState, load_checkpoint_, save_checkpoint
from training.emoji.config import Schedule

GRADIENT_NORM = 1.0  # gradients are clipped to this norm

LossFunction = Callable[[Generator], Tensor]
"""Loss of one training step, a scalar. Its batch and its noise come from the step's own generator (on the CPU)."""


@dataclass(frozen=True)
class Run:
    """Where and how a stage runs.

    `directory` takes the results of every stage. `until` stops every stage early, at that step, with a checkpoint:
    running again without it goes on from there and ends at the weights of an uninterrupted run.
    `bfloat16` lets matrix products and convolutions run in that type: faster where the hardware has it, and many
    times slower on a processor that has not.
    """

    directory: Path
    device: torch.device
    seed: int = 0
    save_every: int = 250
    until: int | None = None
    bfloat16: bool = False

    def autocast(self) -> torch.autocast:
        """Context of the forward passes."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16)


@dataclass(frozen=True)
class Average:
    """Exponential moving average of the trained weights: a copy of the model, and the decay it ends at."""

    model: nn.Module
    decay: float

    @torch.no_grad()
    def update_(self, model: nn.Module, step: int) -> None:
        """Average += (1 - d) (model - average), where d = min(decay, (1 + step) / (10 + step)) forgets the start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, value in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)


def train_(
    model: nn.Module,
    loss_function: LossFunction,
    *,
    stage: str,
    schedule: Schedule,
    run: Run,
    settings: Mapping[str, Any],
    average: Average | None = None,
) -> bool:
    """Train the model in place with AdamW, from the newest checkpoint on; True when the stage is complete."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    modules = {"model": model} if average is None else {"model": model, "average": average.model}
    state = TrainingState(modules, optimizer)
    identity = {"stage": stage, "seed": run.seed, "bfloat16": run.bfloat16, "settings": settings}
    checkpoints = run.directory / "checkpoints" / stage
    start = load_checkpoint_(state, checkpoints, identity)
    end = schedule.steps if run.until is None else min(run.until, schedule.steps)
    model.train()
    with _progress() as progress:
        task = progress.add_task(stage, total=end, completed=start, loss=float("nan"))
        for step in range(start, end):
            loss = _step_(model, loss_function, optimizer, rate=schedule.rate(step), seed=(run.seed, stage, step))
            if average is not None:
                average.update_(model, step)
            progress.update(task, advance=1, loss=loss)
            if (step + 1) % run.save_every == 0 or step + 1 == end:
                save_checkpoint(checkpoints, state, step + 1, identity)
    model.eval()
    return max(start, end) == schedule.steps


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that is a function of the parts, e.g. of (seed, stage, step)."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def seeded_initialization(seed: int) -> Iterator[None]:
    """Modules built inside get weights that depend on the seed alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def sample_batch(count: int, batch_size: int, generator: Generator) -> Tensor:
    """Indices `(batch_size,)` below `count`, drawn with replacement."""
    return torch.randint(0, count, (batch_size,), generator=generator)


def _step_(
    model: nn.Module,
    loss_function: LossFunction,
    optimizer: torch.optim.Optimizer,
    *,
    rate: float,
    seed: tuple[object, ...],
) -> float:
    # A generator per step rather than one for the run: a resumed run needs no generator state to be the same run.
    generator = Generator().manual_seed(derive_seed(*seed))
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = loss_function(generator)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
    optimizer.step()
    return loss.item()


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    )
