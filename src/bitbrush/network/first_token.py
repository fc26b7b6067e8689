"""The first token of a text, the same in all: its keys and values are known before and need no quantization.

MixDQ (arXiv 2405.17873): activations of the start-of-text token are outliers, in whose range the words'
have few levels left. Deviation: what is known counts only where the token is the known one; any other (an empty
prompt's zeros, a weighted prompt) is quantized as the words are.
"""

import inspect
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 2.0**-7
"""Of the largest magnitude: what bfloat16 may change of an embedding."""
OUTLYING_RATIO = 2.0
"""Norm of the start token over the others': from here on a range that holds it costs the words a bit or more.

On emoji-sd with its start token scaled, the error of 4-bit keys and values falls to 0.35 times at a ratio of 2 and 0.14
times at 4 once the token is known; at 1, its own, to 0.82 times.
"""


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
        first = _texts(x)[:, 0]
        if not len(first):
            raise ValueError("no text's first token is known: all that were given are zeros")
        apart = _apart(first)
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


def start_token_ratio(x: Tensor) -> float | None:
    """Norm of the token that all texts ``x`` (N, tokens, C) start with, over the median norm of their other tokens.

    None if they have no start token in common. Empty prompts' zeros do not count.
    """
    texts = _texts(x)
    if not len(texts) or texts.shape[1] < 2 or _apart(texts[:, 0]) > TOLERANCE:
        return None
    norms = texts.norm(dim=-1)
    return float(norms[0, 0] / norms[:, 1:].median())


def text_embedding(denoiser: nn.Module, call: Any) -> Tensor | None:
    """The texts (N, tokens, C) that a call of ``denoiser`` hands to cross-attention; None if it hands none."""
    bound = inspect.signature(type(denoiser).forward).bind(denoiser, *call.args, **call.kwargs)
    text = bound.arguments.get("encoder_hidden_states")
    return text if isinstance(text, Tensor) and text.dim() == 3 else None


def _texts(x: Tensor) -> Tensor:
    """Those that do not start with zeros, float32."""
    return x[x[:, 0].abs().amax(-1) > 0].float()


def _apart(first: Tensor) -> float:
    """The largest difference of first tokens (N, C), in parts of their largest value."""
    return float((first - first[0]).abs().max() / first[0].abs().max())


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
