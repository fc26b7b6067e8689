"""Which layers' quantization errors reach a denoiser's output, of all layers and bit widths in one backward pass.

To first order, quantizing a layer's input ``x`` (or its weight) changes the output by ``J d``, J the Jacobian and d the
error. For a random vector v of independent entries of variance 1, ``E[(v^T J d)^2] = |J d|^2``, and ``v^T J`` is what
backpropagating v hands every layer: Hutchinson's estimate (Communications in Statistics 19(2), 1990), here of the norms
of many vectors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from bitbrush.numerics.affine import QParams, fake_quantize
from bitbrush.numerics.weights import WeightQParams, round_to_nearest
from bitbrush.timeline.trajectory import DenoiserCall


@dataclass(frozen=True)
class Candidates:
    """The grids whose errors are measured, by layer; the k-th of every layer belong together."""

    inputs: Mapping[str, Sequence[QParams]]
    weights: Mapping[str, Sequence[WeightQParams]]


@dataclass(frozen=True)
class Probed:
    """Squared output error, by layer: of the input on each of its candidates, and of the weight."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)

    def add(self, found: dict[str, Tensor], name: str, errors: Tensor) -> None:
        found[name] = found[name] + errors if name in found else errors


def guided(output: Tensor, prompts: int, guidance: float) -> Tensor:
    """What the pipeline makes of a denoiser output (rows, ...): ``u + guidance (c - u)`` of two halves, if it has two.

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
    """One estimate of the guided output's squared errors, summed over prompts weighted by ``importance`` (prompts,).

    The denoiser is left as it was. Costs a forward and a backward pass, and the forward pass's graph in memory.
    """
    probed = Probed()
    with _listening(denoiser, candidates, len(importance), probed), torch.enable_grad():
        output = call.forward(denoiser)[0]
        wanted = guided(output, len(importance), guidance)
        size = importance.repeat(len(wanted) // len(importance)).sqrt()
        v = torch.randn(wanted.shape, generator=generator).to(wanted.device) * size.view(-1, *(1,) * (wanted.dim() - 1))
        wanted.backward(v)
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
    """Gives the layer an alias of its input, whose gradient is this layer's own even where others read it, too."""
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
    else:  # rows of one prompt err together, prompts apart
        errors = errors.view(len(all_qparams), -1, prompts).sum(1)
    probed.add(probed.inputs, name, errors.square().sum(1))


@torch.no_grad()
def _add_weights(probed: Probed, name: str, all_qparams: Sequence[WeightQParams], weight: Tensor) -> None:
    gradient, weight.grad = weight.grad, None
    assert gradient is not None
    inner = [((round_to_nearest(weight, qparams).dequantize() - weight) * gradient).sum() for qparams in all_qparams]
    probed.add(probed.weights, name, torch.stack(inner).square())
