"""What is remembered is what would be computed."""

import torch

from bitbrush.runtime.memo import Copies, Memo


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


def test_tensors_of_equal_values_share_one_copy() -> None:
    copies, x = Copies(entries=2), torch.ones(3)
    first = copies.of(x)
    assert first is not x
    assert copies.of(x) is copies.of(x.clone()) is first
    assert copies.of(x.double()) is not first
    x += 1  # changed in place: the copy is of what it was
    assert torch.equal(copies.of(x), x)
    assert torch.equal(first, torch.ones(3))


def test_tensors_without_a_count_of_writes_are_compared() -> None:
    copies = Copies(entries=2)
    with torch.inference_mode():
        x = torch.ones(3)
        copies.of(x)
        x += 1
        assert torch.equal(copies.of(x), x)


def test_caches_share_copies() -> None:
    copies, x = Copies(entries=1), torch.ones(2)
    memos = [Memo(entries=2, copies=copies) for _ in range(2)]
    known = [memo.get("key", x, lambda: x + 1) for memo in memos]
    again = [memo.get("key", x.clone(), lambda: x + 2) for memo in memos]
    assert all(a is b for a, b in zip(again, known, strict=True))
