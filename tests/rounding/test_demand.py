"""What learned rounding is reckoned to take."""

from torch import nn

from bitbrush.rounding import demand


def test_the_largest_gram_matrix_from_a_size_on_waits_on_the_disk() -> None:
    layers = {"narrow": nn.Linear(16, 4), "wide": nn.Conv2d(1280, 8, 3, device="meta"), "wider": nn.Linear(12000, 2)}
    blocks = {"block": tuple(layers), "narrow": ("narrow",)}
    assert demand.waiting_bytes(nn.ModuleDict(layers), blocks) == 4 * 12000**2
    assert demand.waiting_bytes(nn.ModuleDict(layers), {"narrow": ("narrow",)}) == 0
