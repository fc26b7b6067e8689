"""The first token of a text, the same in all: its keys and values are known before and need no quantization.

MixDQ (arXiv 2405.17873): activations of the start-of-text token are outliers, in whose range the words'
have few levels left. Deviation: what is known counts only where the token is the known one; any other (an empty
prompt's zeros, a weighted prompt) is quantized as the words are.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 2.0**-7
"""Of the largest magnitude: what bfloat16 may change of an embedding."""


@dataclass(frozen=True, eq=False)
class FirstToken:
    """``output`` (C_out,) is what the full-precision layer makes of ``input`` (C_in,); float32."""

    input: Tensor
    output: Tensor

    def to(self, device: torch.device) -> "FirstToken":
        return replace(self, input=self.input.to(device), output=self.output.to(device))

    @classmethod
    def of(cls, layer: nn.Module, x: Tensor) -> "FirstToken":
        """From what ``layer`` is given of several texts, (N, tokens, C_in). Empty prompts' zeros do not count.

        Raises ValueError if the first token is not the same in all others, or if there are none.
        """
        first = x[:, 0].float()
        first = first[first.abs().amax(-1) > 0]
        if not len(first):
            raise ValueError("no text's first token is known: all that were given are zeros")
        apart = float((first - first[0]).abs().max() / first[0].abs().max())
        if apart > TOLERANCE:
            raise ValueError(
                f"first tokens of texts differ by {apart:.2g} of their largest value, at most {TOLERANCE:.2g} are the "
                "same one: the text encoder is not causal, or has no start token; leave first_token at quantized"
            )
        with torch.no_grad():
            output: Tensor = layer(first[:1])
        return cls(first[0].clone(), output[0].clone())


_call = threading.local()
"""``known``: which samples of the running layer's input begin with the known token. Threads share layers."""


def answer_first_token(layer: nn.Module, first: FirstToken) -> None:
    """From now on the first row of what ``layer`` returns is the known one, for samples that have the known token."""
    layer.register_buffer("first_input", first.input, persistent=False)
    layer.register_buffer("first_output", first.output, persistent=False)
    layer.register_forward_pre_hook(_look, prepend=True)  # before any that quantizes the input
    layer.register_forward_hook(_answer)


def _look(layer: Any, args: tuple[Any, ...]) -> None:
    distance = (args[0][:, 0].float() - layer.first_input).abs().amax(-1, keepdim=True)
    _call.known = distance <= TOLERANCE * layer.first_input.abs().max()


def _answer(layer: Any, _: tuple[Any, ...], y: Tensor) -> Tensor:
    row = torch.where(_call.known, layer.first_output, y[:, 0].float()).to(y.dtype)
    return torch.cat([row[:, None], y[:, 1:]], 1)


def answers_first_token(layer: nn.Module) -> bool:
    """Whether :func:`answer_first_token` was told so of the layer."""
    return hasattr(layer, "first_output")


def text_inputs(denoiser: nn.Module, layers: Iterable[str], call: Any) -> dict[str, Tensor]:
    """What the layers are given in ``call``, made of ``denoiser``, by name."""
    given: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        return lambda _, args: given.__setitem__(name, args[0].detach())

    handles = [denoiser.get_submodule(name).register_forward_pre_hook(note(name)) for name in layers]
    try:
        call.run(denoiser)
    finally:
        for handle in handles:
            handle.remove()
    return given
