"""Precomputed outputs for the first token of a text: it is the same in all texts, so it needs no quantization.

MixDQ (arXiv 2405.17873): activations of the start-of-text token are outliers. A range that includes them leaves few
levels to the words.

Deviation: the precomputed output is used only where the token is the known one. Any other first token (an empty
prompt's zeros, a weighted prompt) is quantized like the words.
"""

import inspect
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 2.0**-7
"""Largest difference of equal tokens, relative to the largest magnitude: the error of bfloat16 embeddings."""
OUTLYING_RATIO = 2.0
"""Norm of the start token over the others' from which a range that includes it costs the words a bit or more.

Measured on emoji-sd with its start token scaled, as the error of 4-bit keys and values once the token is known. It
falls to 0.35 times at a ratio of 2 and to 0.14 times at 4. At 1, the model's own ratio, it falls to 0.82 times.
"""


@dataclass(frozen=True, eq=False)
class FirstToken:
    """Output of a layer for the common first token.

    ``output`` (C_out,) is what the full-precision layer computes from ``input`` (C_in,); both are float32.
    """

    input: Tensor
    output: Tensor

    def to(self, device: torch.device) -> "FirstToken":
        """Copies the tensors to a device."""
        return replace(self, input=self.input.to(device), output=self.output.to(device))

    @classmethod
    def of(cls, layer: nn.Module, x: Tensor) -> "FirstToken":
        """Computes the output of ``layer`` for the first token of several texts; zeros of empty prompts do not count.

        Args:
            layer: Full-precision layer.
            x: Its input, (N, tokens, C_in).

        Raises:
            ValueError: The first tokens differ, or all texts are zeros.
        """
        first = _texts(x)[:, 0]
        if not len(first):
            raise ValueError("no text has a first token: all texts are zeros")
        apart = _apart(first)
        if apart > TOLERANCE:
            raise ValueError(
                f"first tokens of texts differ by {apart:.2g} of their largest value, and equal ones by at most "
                f"{TOLERANCE:.2g}: the text encoder is not causal or has no start token; leave first_token at quantized"
            )
        with torch.no_grad():
            output: Tensor = layer(first[:1])
        return cls(first[0].clone(), output[0].clone())


_call = threading.local()
"""Thread-local state, as threads share layers: ``matches`` marks samples that begin with the known token."""


def start_token_ratio(x: Tensor) -> float | None:
    """Computes the norm of the common first token over the median norm of the other tokens.

    Zeros of empty prompts do not count.

    Args:
        x: Texts, (N, tokens, C).

    Returns:
        The ratio; None if the texts have no start token in common.
    """
    texts = _texts(x)
    if not len(texts) or texts.shape[1] < 2 or _apart(texts[:, 0]) > TOLERANCE:
        return None
    norms = texts.norm(dim=-1)
    return float(norms[0, 0] / norms[:, 1:].median())


def text_embedding(denoiser: nn.Module, call: Any) -> Tensor | None:
    """Returns the texts (N, tokens, C) that a call of ``denoiser`` passes to cross-attention; None without texts."""
    bound = inspect.signature(type(denoiser).forward).bind(denoiser, *call.args, **call.kwargs)
    text = bound.arguments.get("encoder_hidden_states")
    return text if isinstance(text, Tensor) and text.dim() == 3 else None


def _texts(x: Tensor) -> Tensor:
    """Selects the texts that do not start with zeros, as float32."""
    return x[x[:, 0].abs().amax(-1) > 0].float()


def _apart(first: Tensor) -> float:
    """Computes the largest difference of first tokens (N, C), relative to their largest value."""
    return float((first - first[0]).abs().max() / first[0].abs().max())


def answer_first_token(layer: nn.Module, first: FirstToken) -> None:
    """Makes ``layer`` return the precomputed output for the first token of samples that begin with the known token."""
    layer.register_buffer("first_input", first.input, persistent=False)
    layer.register_buffer("first_output", first.output, persistent=False)
    layer.register_forward_pre_hook(_look, prepend=True)  # before any hook that quantizes the input
    layer.register_forward_hook(_answer)


def without_known_token(layer: Any, x: Tensor) -> Tensor:
    """Returns the tokens of a layer's input that it quantizes: not the first ones that it knows.

    Args:
        layer: Any layer.
        x: Its input.

    Returns:
        ``x`` itself, or its tokens (N, C_in) without the known ones.
    """
    if not answers_first_token(layer):
        return x
    quantized = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    quantized[:, :1] = ~_known(layer, x)
    return x[quantized]


def _known(layer: Any, x: Tensor) -> Tensor:
    """Marks the samples that begin with the known token, (N, 1)."""
    distance = (x[:, 0].float() - layer.first_input).abs().amax(-1, keepdim=True)
    known: Tensor = distance <= TOLERANCE * layer.first_input.abs().max()
    return known


def _look(layer: Any, args: tuple[Any, ...]) -> None:
    _call.matches = _known(layer, args[0])


def _answer(layer: Any, _: tuple[Any, ...], y: Tensor) -> Tensor:
    row = torch.where(_call.matches, layer.first_output, y[:, 0].float()).to(y.dtype)
    return torch.cat([row[:, None], y[:, 1:]], 1)


def answers_first_token(layer: nn.Module) -> bool:
    """Tells whether :func:`answer_first_token` was applied to the layer."""
    return hasattr(layer, "first_output")


def text_inputs(denoiser: nn.Module, layers: Iterable[str], call: Any) -> dict[str, Tensor]:
    """Runs ``call`` on ``denoiser`` and returns the inputs of the named layers."""
    inputs: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        return lambda _, args: inputs.__setitem__(name, args[0].detach())

    handles = [denoiser.get_submodule(name).register_forward_pre_hook(note(name)) for name in layers]
    try:
        call.run(denoiser)
    finally:
        for handle in handles:
            handle.remove()
    return inputs
