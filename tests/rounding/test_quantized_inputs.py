"""Rounding that sees quantized inputs: on the grids of the rows' timesteps, and weights make up for their errors."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitbrush.network.layers import layer_specs, set_weight
from bitbrush.network.unet import UNET
from bitbrush.numerics.affine import AffineGrid, fake_quantize
from bitbrush.numerics.limits import WeightRange
from bitbrush.rounding.learned import learn_rounding
from bitbrush.rounding.quantized_inputs import QuantizedInputs, on_grids
from bitbrush.session.progress import silent
from bitbrush.timeline.schedule import ActivationSchedule
from bitbrush.timeline.trajectory import DenoiserCall

GRIDS = [AffineGrid(0.5, 3, 3), AffineGrid(0.125, 8, 4), AffineGrid(0.03, 0, 8), AffineGrid(0.001, 40000, 16)]


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6), (4, 3, 7, 6)])
def test_each_row_is_what_its_grid_makes_of_it(shape: tuple[int, ...]) -> None:
    x = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(on_grids(x, GRIDS), torch.stack([fake_quantize(*pair) for pair in zip(x, GRIDS, strict=True)]))


def test_gradients_pass_within_the_range_and_not_beyond() -> None:
    x = torch.tensor([[-9.0, 0.3, 9.0], [-9.0, 0.3, 9.0]], requires_grad=True)
    on_grids(x, GRIDS[:2]).sum().backward()
    assert x.grad is not None
    assert x.grad[:, 0].tolist() == x.grad[:, 2].tolist() == [0.0, 0.0]
    torch.testing.assert_close(x.grad[:, 1], torch.ones(2))


def schedules() -> dict[str, ActivationSchedule]:
    return {"0": ActivationSchedule.of({900.0: GRIDS[0], 10.0: GRIDS[1]})}


def test_layers_see_their_inputs_by_timestep_and_only_while_they_shall() -> None:
    network = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    inputs, x = QuantizedInputs(network, schedules()), torch.randn(2, 6)
    plain = network(x)
    with inputs.at([850.0, 0.0]):
        seen = network(x)
    wanted = network(on_grids(x, GRIDS[:2]))  # the second layer has no schedule
    assert torch.equal(seen, wanted)
    assert not torch.equal(seen, plain)
    assert torch.equal(network(x), plain)


def test_another_number_of_rows_is_refused_by_name() -> None:
    network = nn.Sequential(nn.Linear(6, 6))
    inputs = QuantizedInputs(network, schedules())
    match = "layer 0 is given 3 rows where its block has 2; round with rounding = learned"
    with inputs.at([1.0, 2.0]), pytest.raises(ValueError, match=match):
        network(torch.zeros(3, 6))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.block, self.last = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12)), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(x + self.block(x))
        return y


def calls(seed: int) -> list[DenoiserCall]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(3, 12, generator=torch.Generator().manual_seed(9))
    return [
        DenoiserCall((size * torch.randn(64, 3, generator=generator) @ mixing + 0.4,), {}, t, ())
        for t, size in [(900.0, 1.0), (500.0, 2.0), (0.0, 4.0)]
    ]


def test_weights_that_saw_quantized_inputs_err_less_on_such() -> None:
    """On calls never seen, with inputs of 3 bits whose grids clip, at timesteps of different sizes."""
    network = Blocks()
    family = replace(UNET, denoiser_class=Blocks, edge_layers=lambda _: (), block_classes=(nn.Sequential,))
    specs = layer_specs(network, family, weight_bits=6)
    grids = {t: AffineGrid(size * 0.6, 3, 3) for t, size in [(900.0, 1.0), (500.0, 2.0), (0.0, 4.0)]}
    chosen = {spec.name: ActivationSchedule.of(grids) for spec in specs}

    def error(schedules: dict[str, ActivationSchedule] | None) -> float:
        rounded = learn_rounding(network, family, specs, WeightRange.MSE, calls(0), silent, schedules=schedules)
        quantized = copy.deepcopy(network)
        for name, layer in rounded.items():
            set_weight(quantized.get_submodule(name), layer.weight.dequantize(), layer.bias)
        inputs, total = QuantizedInputs(quantized, chosen), 0.0
        for call in calls(1):
            with inputs.at([call.timestep] * 64):
                total += float(F.mse_loss(call.run(quantized), call.run(network)))
        return total

    assert error(chosen) < 0.8 * error(None)
