"""What is remembered is what would be computed."""

import torch

from bitbrush.runtime.memo import Memo


def test_only_the_same_key_and_input_are_found() -> None:
    memo, calls = Memo(entries=2), []

    def result(key: str, x: torch.Tensor) -> torch.Tensor:
        return memo.get(key, x, lambda: (calls.append(key), 2 * x)[1])

    x = torch.ones(3)
    assert torch.equal(result("a", x), 2 * x)
    assert torch.equal(result("a", x.clone()), 2 * x)
    assert calls == ["a"]
    x += 1  # changed in place: another input
    assert torch.equal(result("a", x), 2 * x)
    assert torch.equal(result("a", x[:2]), 2 * x[:2])
    assert calls == ["a"] * 3


def test_the_longest_unused_is_forgotten() -> None:
    memo, calls = Memo(entries=2), []
    x = torch.ones(1)
    for key in ("a", "b", "a", "c", "a", "b"):
        memo.get(key, x, lambda key=key: (calls.append(key), x)[1])
    assert calls == ["a", "b", "c", "b"]
