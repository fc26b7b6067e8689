"""Step sizes of activations learned on the denoiser's output, every step going on from what the one before found.

``min over s of |e_t + m e_(t-1) + m^2 e_(t-2) + ...|^2``, ``e_t = g(eps_hat(Q_s(x_t))) - g(eps(x_t))``, all layers at
once: ``g`` is the guidance, ``eps`` full precision's output at the same latents, ``s_l = s_l,0 exp(u_l)`` with
``s_l,0`` the observed range's. Gradients go straight through the round (LSQ, arXiv 1902.08153, section 2.1);
Q-Diffusion and BRECQ learn step sizes so, block by block. What differs: the output is the whole denoiser's, after
guidance, which magnifies what its two halves get wrong apart and cancels what they get wrong alike; ``u`` and the
optimizer's state are carried from step to step, since neighbouring steps want nearly the same, and two iterations a
step are enough; and errors of earlier steps count. Without these (``m = 0``) a step's error halves and pictures get
worse, presumably as clipping goes up, whose errors neighbouring steps share, and rounding errors go down, which they do
not share.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor, nn

from bitbrush.calibration.probe import guided
from bitbrush.network.held import device_of
from bitbrush.network.output_correction import prediction
from bitbrush.numerics.affine import AffineGrid, quantize_straight_through
from bitbrush.session.costs import CallCounter
from bitbrush.session.progress import Progress
from bitbrush.session.ranks import ALONE, Ranks
from bitbrush.timeline.trajectory import DenoiserCall

Grids: TypeAlias = Mapping[str, AffineGrid]

ITERATIONS = 2
LEARNING_CALLS = 1 + ITERATIONS
"""Denoiser calls of :meth:`StepSizeLearner.learned`: of full precision, and of the quantized one, there and back."""
STATIC_EPOCHS = 3
STATIC_CALLS = 1 + STATIC_EPOCHS
"""Likewise of :meth:`StepSizeLearner.learned_static`, for each call that it is given."""
LEARNED_PROMPTS = 8
RATE, BETAS = 0.03, (0.9, 0.99)
MEMORY = 0.95
"""``m``: how much of an error counts a step later."""
LARGEST = 0.7
"""Of ``|u|``: a step size is at most doubled or halved."""
LEAST = 1e-30
"""Stands for no error at all where it is divided by."""


@dataclass(frozen=True)
class _Step:
    """A call of ``prompts``, and the guided output that full precision has there."""

    call: DenoiserCall
    prompts: int
    target: Tensor


class StepSizeLearner:
    """The logarithms ``u`` of ``layers``, and the optimizer that moves them.

    ``full``: the full-precision denoiser; ``prompts`` of the calls that will be given. Of several processes the first
    learns, on its own calls, and tells the others.
    """

    def __init__(
        self,
        full: nn.Module,
        layers: Sequence[str],
        guidance: float,
        prompts: int,
        calls: CallCounter,
        ranks: Ranks = ALONE,
    ) -> None:
        self._full, self._layers, self._calls, self._ranks = full, tuple(layers), calls, ranks
        self._guidance, self._prompts = guidance, prompts
        self._device = device_of(full)
        self._u = torch.zeros(len(self._layers), device=self._device, requires_grad=True)
        self._past: Tensor | None = None
        self._adam = torch.optim.Adam([self._u], lr=RATE, betas=BETAS)

    def learned(
        self, denoiser: nn.Module, call: DenoiserCall, grids: Mapping[str, AffineGrid]
    ) -> dict[str, AffineGrid]:
        """``grids`` with other scales, after ITERATIONS on the first prompts of ``call``; of other layers they stay.

        ``denoiser`` computes with the rounded weights, and is left as it was.
        """

        def iterate() -> dict[str, Tensor]:
            step = self._step(call)
            past = torch.zeros(()) if self._past is None else MEMORY * self._past
            for _ in range(ITERATIONS):
                error = self._iterate(denoiser, step, grids, past)
            self._past = past + error
            return self.state()

        return self._settled(iterate, grids)

    def learned_static(
        self, denoiser: nn.Module, calls: Sequence[DenoiserCall], grids: Grids, progress: Progress
    ) -> dict[str, AffineGrid]:
        """``grids`` that serve all ``calls``, of different timesteps: in random order, with a rate that falls to 0."""

        def iterate() -> dict[str, Tensor]:
            generator, total = Generator().manual_seed(0), STATIC_EPOCHS * len(calls)
            steps, nothing = [self._step(call) for call in calls], torch.zeros(())
            with progress("learning step sizes", total) as advance:
                for done in range(total):
                    if done % len(calls) == 0:
                        order = torch.randperm(len(calls), generator=generator).tolist()
                    self._adam.param_groups[0]["lr"] = RATE * (1 - done / total)
                    self._iterate(denoiser, steps[order[done % len(calls)]], grids, nothing)
                    advance()
            return self.state()

        return self._settled(iterate, grids)

    def _settled(self, iterate: Callable[[], dict[str, Tensor]], grids: Grids) -> dict[str, AffineGrid]:
        found = self._ranks.from_first(iterate)
        assert found is not None
        self.set_state(found)
        scales = dict(zip(self._layers, self._u.detach().exp().tolist(), strict=True))
        return {name: scaled(grid, scales[name]) if name in scales else grid for name, grid in grids.items()}

    def state(self) -> dict[str, Tensor]:
        """All that the next step goes on from."""
        moments = self._adam.state.get(self._u, {})
        zero = torch.zeros_like(self._u)
        kept = {key: moments.get(key, zero) for key in ("exp_avg", "exp_avg_sq")}
        past = torch.zeros(0) if self._past is None else self._past
        step = torch.as_tensor(moments.get("step", 0.0))
        return {"u": self._u.detach().clone(), "step": step, "past": past, **kept}

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`state`."""
        with torch.no_grad():
            self._u.copy_(state["u"])
        self._past = state["past"].to(self._device) if len(state["past"]) else None
        moments = {key: state[key].to(self._device, copy=True) for key in ("exp_avg", "exp_avg_sq")}
        self._adam.state[self._u] = {"step": state["step"].clone(), **moments}

    def _step(self, call: DenoiserCall) -> "_Step":
        prompts = min(LEARNED_PROMPTS, self._prompts)
        part = of_first_prompts(call, self._prompts, prompts)
        target = guided(prediction(part.run(self._full)), prompts, self._guidance)
        self._calls.add()
        return _Step(part, prompts, target)

    def _iterate(self, denoiser: nn.Module, step: "_Step", grids: Grids, past: Tensor) -> Tensor:
        """Moves ``u`` once; the error of the output before."""
        with self._quantized(denoiser, grids), torch.enable_grad():
            output = prediction(denoiser(*step.call.args, **step.call.kwargs))
            error = guided(output, step.prompts, self._guidance) - step.target
            size = error.detach().square().mean().clamp_min(LEAST)  # so that no step counts more than another
            (self._u.grad,) = torch.autograd.grad((error + past).square().mean() / size, [self._u])
        self._adam.step()
        with torch.no_grad():
            self._u.clamp_(-LARGEST, LARGEST)
        self._calls.add()
        return error.detach()

    @contextmanager
    def _quantized(self, denoiser: nn.Module, grids: Grids) -> Iterator[None]:
        """While entered, the layers see their inputs on the grids, whose scales have gradients."""
        index = {name: i for i, name in enumerate(self._layers)}
        factors = self._u.exp()
        with ExitStack() as stack:
            for name, grid in grids.items():
                factor = factors[index[name]] if name in index else None
                hook = partial(_see_quantized, grid, factor)
                stack.callback(denoiser.get_submodule(name).register_forward_pre_hook(hook).remove)
            yield


def _see_quantized(grid: AffineGrid, factor: Tensor | None, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    scale = torch.tensor(grid.scale) if factor is None else grid.scale * factor
    return quantize_straight_through(args[0], scale, grid), *args[1:]


def scaled(grid: AffineGrid, factor: float) -> AffineGrid:
    """The same integers, each ``factor`` times as much."""
    return replace(grid, scale=float(torch.tensor(grid.scale * factor, dtype=torch.float32)))


def of_first_prompts(call: DenoiserCall, prompts: int, kept: int) -> DenoiserCall:
    """The rows of the first ``kept`` of a call's ``prompts``, of each of its parts (with guidance, two).

    Anything but a tensor with as many rows as the latents is taken to be the same for all.
    """
    rows = next(len(one) for one in (*call.args, *call.kwargs.values()) if isinstance(one, Tensor) and one.dim() > 1)
    chosen = torch.arange(rows).view(-1, prompts)[:, :kept].flatten() if rows % prompts == 0 else torch.arange(rows)

    def pick(value: Any) -> Any:
        match value:
            case Tensor() if value.dim() > 0 and len(value) == rows:
                return value[chosen]
            case dict():
                return {key: pick(one) for key, one in value.items()}
            case list() | tuple():
                return type(value)(pick(one) for one in value)
            case _:
                return value

    return replace(call, args=pick(call.args), kwargs=pick(call.kwargs))
