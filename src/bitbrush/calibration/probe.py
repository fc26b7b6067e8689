"""Gradient estimate of each layer's share of the output error, for all layers and bit widths in one backward pass.

To first order, quantizing a layer's input ``x`` (or its weight) changes the output by ``J d``. J is the Jacobian and d
the quantization error. For a random vector v with independent entries of variance 1,
``E[(v^T J d)^2] = |J d|^2``. Backpropagating v gives ``v^T J`` at every layer. This is Hutchinson's estimator
(Communications in Statistics 19(2), 1990), here for the norms of many vectors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from bitbrush.numerics.affine import QParams, fake_quantize
from bitbrush.numerics.weights import WeightQParams, round_to_nearest
from bitbrush.timeline.trajectory import DenoiserCall, prediction


@dataclass(frozen=True)
class Candidates:
    """Candidate quantization parameters by layer; the k-th candidates of all layers belong together."""

    inputs: Mapping[str, Sequence[QParams]]
    weights: Mapping[str, Sequence[WeightQParams]]


@dataclass(frozen=True)
class Probed:
    """Squared output errors by layer, for each candidate of the input and of the weight."""

    inputs: dict[str, Tensor]
    weights: dict[str, Tensor]

    @classmethod
    def nothing(cls, candidates: Candidates) -> "Probed":
        """Returns no errors. A layer keeps them if no gradient reaches it: the last block's text, an idle expert."""
        inputs, weights = (
            {name: torch.zeros(len(choices)) for name, choices in by_layer.items()}
            for by_layer in (candidates.inputs, candidates.weights)
        )
        return cls(inputs, weights)

    def add(self, totals: dict[str, Tensor], name: str, errors: Tensor) -> None:
        """Adds the errors of a layer to ``totals``."""
        totals[name] = totals[name].to(errors) + errors


def guided(output: Tensor, prompts: int, guidance: float) -> Tensor:
    """Applies guidance to a denoiser output (rows, ...): ``u + guidance (c - u)`` of its two halves, if it has two.

    Pipelines with guidance put the unconditional half first.
    """
    if len(output) != 2 * prompts:
        return output
    unconditional, conditional = output.chunk(2)
    return unconditional + guidance * (conditional - unconditional)


def probe(
    denoiser: nn.Module,
    call: DenoiserCall,
    candidates: Candidates,
    importance: Tensor,
    guidance: float,
    generator: Generator,
) -> Probed:
    """Estimates the guided output's squared errors once, summed over prompts with weights ``importance``.

    The denoiser is restored afterwards. The cost is one forward and one backward pass, with the forward pass's graph in
    memory.

    Args:
        denoiser: Full-precision denoiser.
        call: Denoiser call to run.
        candidates: Quantization parameters whose errors are estimated.
        importance: Weight of each prompt, (prompts,).
        guidance: Guidance scale.
        generator: Generator of the random vector.

    Returns:
        Squared errors by layer and candidate.
    """
    probed = Probed.nothing(candidates)
    with _listening(denoiser, candidates, len(importance), probed), torch.enable_grad():
        output = prediction(call.forward(denoiser))
        y = guided(output, len(importance), guidance)
        size = importance.repeat(len(y) // len(importance)).sqrt()
        v = torch.randn(y.shape, generator=generator).to(y.device) * size.view(-1, *(1,) * (y.dim() - 1))
        y.backward(v)
    return probed


@contextmanager
def _listening(denoiser: nn.Module, candidates: Candidates, prompts: int, probed: Probed) -> Iterator[None]:
    learned = {parameter: parameter.requires_grad for parameter in denoiser.parameters()}
    with ExitStack() as stack:
        for parameter, usual in learned.items():
            stack.callback(parameter.requires_grad_, usual)
            parameter.requires_grad_(False)
        for name, all_qparams in candidates.inputs.items():
            hook = partial(_watch_input, partial(_add_inputs, probed, name, all_qparams, prompts))
            stack.callback(denoiser.get_submodule(name).register_forward_pre_hook(hook).remove)
        for name, rounded_on in candidates.weights.items():
            weight = denoiser.get_submodule(name).get_parameter("weight").requires_grad_(True)
            add = partial(_add_weights, probed, name, rounded_on)
            stack.callback(weight.register_post_accumulate_grad_hook(add).remove)
        yield


def _watch_input(add: Callable[[Tensor, Tensor], None], _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns an alias of the input to the layer, so that the gradient is this layer's alone even for shared inputs."""
    x = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
    alias = x.view_as(x)
    alias.register_hook(partial(add, x.detach()))
    return alias, *args[1:]


@torch.no_grad()
def _add_inputs(
    probed: Probed, name: str, all_qparams: Sequence[QParams], prompts: int, x: Tensor, gradient: Tensor
) -> None:
    errors = torch.stack([(fake_quantize(x, qparams).sub_(x) * gradient).flatten(1).sum(1) for qparams in all_qparams])
    if errors.shape[1] % prompts:
        errors = errors.sum(1, keepdim=True)
    else:  # errors add up within a prompt; prompts are independent
        errors = errors.view(len(all_qparams), -1, prompts).sum(1)
    probed.add(probed.inputs, name, errors.square().sum(1))


@torch.no_grad()
def _add_weights(probed: Probed, name: str, all_qparams: Sequence[WeightQParams], weight: Tensor) -> None:
    gradient, weight.grad = weight.grad, None
    assert gradient is not None
    inner = [((round_to_nearest(weight, qparams).dequantize() - weight) * gradient).sum() for qparams in all_qparams]
    probed.add(probed.weights, name, torch.stack(inner).square())
