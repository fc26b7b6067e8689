"""What learned rounding is reckoned to take."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from bitbrush.network.footprint import ModuleUse, measure_footprint
from bitbrush.numerics.weights import WeightRange
from bitbrush.rounding import demand
from bitbrush.rounding.blocks import BlockCall, BlockInputs
from bitbrush.rounding.compensation import round_with_compensation
from bitbrush.rounding.reconstruction import reconstruct
from bitbrush.timeline.live_memory import LiveMemory
from bitbrush.timeline.trajectory import DenoiserCall


def test_the_largest_gram_matrix_from_a_size_on_waits_on_the_disk() -> None:
    layers = {"narrow": nn.Linear(16, 4), "wide": nn.Conv2d(1280, 8, 3, device="meta"), "wider": nn.Linear(12000, 2)}
    blocks = {"block": tuple(layers), "narrow": ("narrow",)}
    assert demand.waiting_bytes(nn.ModuleDict(layers), blocks) == 4 * 12000**2
    assert demand.waiting_bytes(nn.ModuleDict(layers), {"narrow": ("narrow",)}) == 0


@pytest.mark.parametrize("rows", [24, 128])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(48, 32, 3, padding=1), (48, 12, 12)),
        (nn.Conv2d(48, 32, 3, stride=2, padding=1), (48, 12, 12)),
        (nn.Conv2d(64, 32, 1), (64, 12, 12)),
        (nn.Linear(256, 64), (144, 256)),
    ],
    ids=["conv", "strided", "pointwise", "linear"],
)
def test_rounding_a_layer_takes_no_more_than_told(
    layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...], rows: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, target_x = torch.randn(2, rows, *shape, generator=generator)
    positions = layer(x[:1]).numel() // layer.weight.shape[0]
    use = ModuleUse(live=0, inner=0, inputs=x[:1].nbytes, outputs=0, rows=1, positions=positions)
    with LiveMemory() as memory, torch.no_grad():
        round_with_compensation(layer, 4, WeightRange.MSE, target_x, x, generator)
    told = demand.layer_demand(layer, use, rows).bytes
    assert memory.most <= told <= 1.6 * memory.most


def test_what_waits_counts_up_to_the_room_it_has() -> None:
    network = nn.Sequential(OrderedDict(layer=nn.Linear(64, 128)))
    call = DenoiserCall((torch.zeros(1, 96, 64),), {}, 1.0, (1.0,))
    _, footprint = measure_footprint(network, call, ("layer",))
    blocks, room = {"layer": ("layer",)}, 1 << 16
    none, some, all_of_it = (
        demand.rounding_bytes(network, blocks, footprint, 1, 100, room=size) for size in (0, room, 1 << 40)
    )
    assert some - none == room
    assert all_of_it - none == demand.spooled_bytes(blocks, footprint, 100) > room


def test_learning_a_block_takes_no_more_than_told() -> None:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(OrderedDict(block=nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 64))))
    x = torch.randn(256, 96, 64, generator=generator)
    layers = ("block.0", "block.2")
    _, footprint = measure_footprint(network, DenoiserCall((x[:1],), {}, 1.0, (1.0,)), ("block", *layers))
    start = {
        layer: round_with_compensation(network.block[index], 4, WeightRange.MSE, x @ way, x @ way, generator)
        for layer, index, way in (("0", 0, torch.eye(64)), ("2", 2, torch.eye(64, 128)))
    }
    with LiveMemory() as memory:
        reconstruct(network.block, start, BlockInputs.of([BlockCall("block", (x,), {})]), x, generator)
    told = demand.rounding_bytes(network, {"block": layers}, footprint, 1, 1)
    assert memory.most <= told <= 2 * memory.most
