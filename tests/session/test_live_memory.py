"""Tensors are counted from when they are made until nobody has them."""

import torch
from torch import nn

from bitbrush.session.live_memory import LiveMemory, tensor_bytes

KIB = 1024


def test_what_is_made_is_counted_until_it_is_gone() -> None:
    before = torch.zeros(256)
    with LiveMemory() as memory:
        first = before + 1
        second = first * 2
        assert memory.now == 2 * KIB
        del first
        assert memory.now == KIB
        del second
    assert (memory.now, memory.most) == (0, 2 * KIB)


def test_views_and_changes_in_place_are_no_new_memory() -> None:
    before = torch.zeros(256)
    with LiveMemory() as memory:
        before.add_(1).view(16, 16).t()
        assert memory.most == 0
        made = (before + 1).view(16, 16)
        del before
        assert memory.now == KIB
        row = made[0]
        del made
        assert memory.now == KIB  # the row keeps all of it
        del row
        assert memory.now == 0


@torch.no_grad()
def test_the_most_is_what_a_network_holds_at_once() -> None:
    network = nn.Sequential(nn.Linear(256, 512, bias=False), nn.ReLU(), nn.Linear(512, 256, bias=False))
    x = torch.zeros(1, 256)
    with LiveMemory() as memory:
        network(x)
    assert memory.most == 4 * KIB  # the ReLU's input and output
    assert memory.now == 0


def test_bytes_of_nested_tensors() -> None:
    x = torch.zeros(3, dtype=torch.float64)
    assert tensor_bytes(({"a": x, "b": [x, None]}, 5)) == 48
