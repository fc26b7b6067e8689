"""The known first token: its row and no other, where it is the known one and nowhere else."""

import pytest
import torch
from torch import nn

from bitbrush.network.first_token import FirstToken, answer_first_token, start_token_ratio
from bitbrush.network.inputs import InputObserver, fake_quantize_input
from bitbrush.numerics.affine import QParams

START = torch.tensor([800.0, -3.0, 2.0])


def texts(count: int = 2) -> torch.Tensor:
    """(count, 5, 3): the start token, and words."""
    return torch.cat([START.expand(count, 1, 3), torch.randn(count, 4, 3)], 1)


def layers() -> tuple[nn.Linear, nn.Linear]:
    """In full precision, and a poor copy."""
    full, poor = nn.Linear(3, 4), nn.Linear(3, 4)
    with torch.no_grad():
        poor.weight.copy_(full.weight.round(decimals=1))
        poor.bias.copy_(full.bias)
    return full, poor


def test_known_rows_are_full_precisions_and_the_others_the_layers_own() -> None:
    full, poor = layers()
    x = texts()
    expected = poor(x)
    answer_first_token(poor, FirstToken.of(full, x))
    y = poor(x)
    assert torch.allclose(y[:, 0], full(x)[:, 0])
    assert not torch.allclose(y[:, 0], expected[:, 0])
    assert torch.equal(y[:, 1:], expected[:, 1:])


def test_inputs_are_looked_at_before_they_are_quantized() -> None:
    full, poor = layers()
    x = texts()
    fake_quantize_input(poor, lambda: QParams.from_range(-3, 3, 8))  # the start token is clipped
    answer_first_token(poor, FirstToken.of(full, x))
    assert torch.allclose(poor(x)[:, 0], full(x)[:, 0])


def test_other_first_tokens_are_the_layers_own() -> None:
    full, poor = layers()
    x = texts()
    x[0, 0], expected = 0.0, None
    expected = poor(x)
    first = FirstToken.of(full, x)
    assert torch.equal(first.input, START)  # the empty prompt's zeros do not count
    answer_first_token(poor, first)
    y = poor(x)
    assert torch.equal(y[0], expected[0])
    assert torch.allclose(y[1, 0], full(x)[1, 0])


def test_half_precision_changes_nothing() -> None:
    full, poor = layers()
    answer_first_token(poor, FirstToken.of(full, texts()))
    x = texts().bfloat16().float()
    assert torch.equal(poor(x)[:, 0], full(texts())[:, 0])


def test_texts_without_a_common_first_token_are_refused() -> None:
    full, _ = layers()
    with pytest.raises(ValueError, match=r"first tokens of texts differ by 0\.05 of their largest value"):
        FirstToken.of(full, texts() * torch.tensor([1.0, 1.05]).view(2, 1, 1))
    with pytest.raises(ValueError, match="all texts are zeros"):
        FirstToken.of(full, torch.zeros(2, 5, 3))


def test_ranges_are_those_of_the_other_tokens() -> None:
    network = nn.ModuleDict({"key": nn.Linear(3, 4), "other": nn.Linear(3, 4)})
    observer, x = InputObserver(), texts()
    with observer.watching(network, ["key", "other"], but_first=["key"]):
        network["key"](x)
        network["other"](x)
    assert observer.histogram("key").high == float(x[:, 1:].max())
    assert observer.histogram("other").high == 800.0


def test_the_ratio_is_of_norms_and_of_texts_alone() -> None:
    x = torch.ones(3, 5, 4)
    x[:, 0] *= 7
    x[0] = 0  # an empty prompt of SDXL
    x[1, 1] *= 100  # one word far out
    assert start_token_ratio(x) == pytest.approx(7)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 5, 4),
        torch.ones(2, 1, 4),
        torch.stack([torch.ones(5, 4), torch.ones(5, 4) + torch.eye(5, 4)]),  # as of an encoder that is not causal
    ],
)
def test_texts_without_a_common_start_token_have_no_ratio(x: torch.Tensor) -> None:
    assert start_token_ratio(x) is None
