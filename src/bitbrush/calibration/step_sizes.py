"""Learned activation step sizes, one per layer for all steps, fitted to the denoiser's guided output.

``min over s of |g(eps_hat(Q_s(x_t))) - g(eps(x_t))|^2`` over the steps t, all layers at once. ``g`` is the guidance,
``eps`` the full-precision output at the same latents, and ``s_l = s_l,0 exp(u_l)`` with the observed range's ``s_l,0``.
Gradients pass straight through the round (LSQ, arXiv 1902.08153, section 2.1). Q-Diffusion and BRECQ learn step sizes
this way on the output of each block. Deviation: here the output is the whole denoiser's after guidance. Guidance
amplifies errors that differ between its two halves and cancels equal errors.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor, nn

from bitbrush.calibration.probe import guided
from bitbrush.network.lazy_weights import device_of
from bitbrush.numerics.affine import QParams, quantize_straight_through
from bitbrush.session.session import Session
from bitbrush.timeline.trajectory import DenoiserCall, prediction

QParamsByLayer: TypeAlias = Mapping[str, QParams]

EPOCHS = 3
LEARNING_CALLS = 1 + EPOCHS
"""Denoiser calls of :meth:`StepSizeLearner.learned` per input call; all but one with gradients."""
LEARNING_TITLE = "learning step sizes"
"""Title of progress reports."""
LEARNED_PROMPTS = 8
RATE, BETAS = 0.03, (0.9, 0.99)
LARGEST = 0.7
"""Bound on ``|u|``: a step size is at most doubled or halved."""
LEAST = 1e-30
"""Replacement for a zero error before division by it."""


@dataclass(frozen=True)
class _Step:
    """Denoiser call and the guided full-precision output for it."""

    call: DenoiserCall
    target: Tensor


class StepSizeLearner:
    """Optimizer of the logarithms ``u`` of the layers' step size factors.

    With several processes the first learns, on its own calls, and broadcasts the result.
    """

    def __init__(
        self,
        full: nn.Module,
        layers: Sequence[str],
        guidance: float,
        prompts: int,
        session: Session,
    ) -> None:
        """Creates the parameters and the Adam optimizer.

        Args:
            full: Full-precision denoiser.
            layers: Layers whose step sizes are learned.
            guidance: Guidance scale.
            prompts: Prompts of each call.
            session: Processes, progress and costs.
        """
        self._full, self._layers, self._session = full, tuple(layers), session
        self._guidance, self._prompts = guidance, prompts
        self._u = torch.zeros(len(self._layers), device=device_of(full), requires_grad=True)
        self._adam = torch.optim.Adam([self._u], lr=RATE, betas=BETAS)

    def learned(
        self, denoiser: nn.Module, calls: Sequence[DenoiserCall], all_qparams: QParamsByLayer
    ) -> dict[str, QParams]:
        """Learns scales that serve all ``calls``, which have different timesteps.

        The calls come in random order; the learning rate falls to 0.

        Args:
            denoiser: Denoiser with rounded weights; it is restored afterwards.
            calls: Full-precision denoiser calls.
            all_qparams: Quantization parameters by layer name.

        Returns:
            Quantization parameters by layer name; layers that do not learn keep theirs.
        """

        def iterate() -> dict[str, Tensor]:
            generator, total = Generator().manual_seed(0), EPOCHS * len(calls)
            steps = [self._step(call) for call in calls]
            with self._session.progress(LEARNING_TITLE, total) as advance:
                for iteration in range(total):
                    if iteration % len(calls) == 0:
                        order = torch.randperm(len(calls), generator=generator).tolist()
                    self._adam.param_groups[0]["lr"] = RATE * (1 - iteration / total)
                    self._iterate(denoiser, steps[order[iteration % len(calls)]], all_qparams)
                    advance()
            return {"u": self._u.detach()}

        tensors = self._session.ranks.from_first(iterate)
        assert tensors is not None
        factors = dict(zip(self._layers, tensors["u"].exp().tolist(), strict=True))
        return {
            name: scaled(qparams, factors[name]) if name in factors else qparams
            for name, qparams in all_qparams.items()
        }

    def _step(self, call: DenoiserCall) -> _Step:
        target = guided(prediction(call.run(self._full)), self._prompts, self._guidance)
        self._session.count_call()
        return _Step(call, target)

    def _iterate(self, denoiser: nn.Module, step: _Step, all_qparams: QParamsByLayer) -> None:
        """Updates ``u`` once."""
        with self._quantized(denoiser, all_qparams), torch.enable_grad():
            output = prediction(step.call.forward(denoiser))
            error = guided(output, self._prompts, self._guidance) - step.target
            size = error.detach().square().mean().clamp_min(LEAST)  # gives all steps equal weight
            (self._u.grad,) = torch.autograd.grad(error.square().mean() / size, [self._u])
        self._adam.step()
        with torch.no_grad():
            self._u.clamp_(-LARGEST, LARGEST)
        self._session.count_call()

    @contextmanager
    def _quantized(self, denoiser: nn.Module, all_qparams: QParamsByLayer) -> Iterator[None]:
        """Fake-quantizes the layers' inputs with differentiable scales while entered."""
        index = {name: i for i, name in enumerate(self._layers)}
        factors = self._u.exp()
        with ExitStack() as stack:
            for name, qparams in all_qparams.items():
                factor = factors[index[name]] if name in index else None
                hook = partial(_see_quantized, qparams, factor)
                stack.callback(denoiser.get_submodule(name).register_forward_pre_hook(hook).remove)
            yield


def _see_quantized(qparams: QParams, factor: Tensor | None, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    scale = torch.tensor(qparams.scale) if factor is None else qparams.scale * factor
    return quantize_straight_through(args[0], scale, qparams), *args[1:]


def scaled(qparams: QParams, factor: float) -> QParams:
    """Returns the quantization parameters with the scale multiplied by ``factor``."""
    return replace(qparams, scale=float(torch.tensor(qparams.scale * factor, dtype=torch.float32)))


def of_first_prompts(call: DenoiserCall, prompts: int, count: int) -> DenoiserCall:
    """Selects the rows of the first ``count`` of a call's ``prompts`` in each of its parts (two with guidance).

    Values other than tensors and lists with as many rows as the latents are assumed common to all prompts.
    """
    rows = call.rows
    indices = torch.arange(rows).view(-1, prompts)[:, :count].flatten() if rows % prompts == 0 else torch.arange(rows)

    def pick(value: Any) -> Any:
        match value:
            case Tensor() if value.dim() > 0 and len(value) == rows:
                return value[indices]
            case list() if len(value) == rows:
                return [value[index] for index in indices.tolist()]
            case dict():
                return {key: pick(item) for key, item in value.items()}
            case list() | tuple():
                return type(value)(pick(item) for item in value)
            case _:
                return value

    return replace(call, args=pick(call.args), kwargs=pick(call.kwargs))
