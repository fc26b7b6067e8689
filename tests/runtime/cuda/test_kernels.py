"""Every kernel against whole numbers and float64, on odd sizes: emulated here, on the card where there is one."""

import sys
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitbrush.network.layers import QuantizedLayer
from bitbrush.numerics.affine import QParams, fake_quantize, quantize
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import round_to_nearest, weight_qparams
from bitbrush.runtime.cuda.fused_ops import CudaFusedOps, DeviceBytes
from bitbrush.runtime.cuda.layers import IntegerLinear
from bitbrush.runtime.cuda.steps import StepQParams, Steps
from bitbrush.runtime.cuda.tiles import Gpu, Need, Product, candidates
from bitbrush.runtime.cuda.weights import lay_out
from bitbrush.timeline.schedule import ActivationSchedule

PLAIN, RELAXED = 900.0, 100.0
GRIDS = {PLAIN: QParams(0.03, 77, 8), RELAXED: QParams(0.01, 301, 10)}


class Shape(NamedTuple):
    """Of an input (images, channels, height, width) and a convolution with ``kernel`` taps in each direction."""

    images: int
    channels: int
    height: int
    width: int
    filters: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1


SHAPES = {
    "odd": Shape(2, 5, 7, 9, 11),
    "stride": Shape(1, 40, 9, 8, 33, stride=2),
    "dilation": Shape(1, 8, 9, 9, 5, dilation=2),
    "groups": Shape(1, 6, 6, 5, 9, groups=3),
    "depthwise": Shape(1, 4, 6, 6, 4, kernel=5, groups=4),
    "even channels": Shape(1, 64, 4, 4, 32),
    "wide tiles": Shape(1, 130, 1, 100, 300, kernel=1),
    "tall tiles": Shape(1, 70, 1, 300, 100, kernel=1),
}


def integers(shape: tuple[int, ...], low: int, high: int, seed: int) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def at(all_qparams: dict[float, QParams], timestep: float, device: torch.device) -> StepQParams:
    steps = Steps(device, 1)
    qparams = steps.qparams(ActivationSchedule.of(all_qparams))
    steps.set(torch.tensor(timestep))
    return qparams


def whole(x: DeviceBytes, timestep: float) -> Tensor:
    """The integers that the bytes stand for."""
    two = x.low is not None and timestep == RELAXED
    high = x.high.cpu().long() + (2 if two else 128)
    return 256 * high + x.low.cpu().long() + 128 if two else high


def as_bytes(x_q: Tensor, bits: int) -> tuple[Tensor, Tensor | None]:
    """NHWC, each byte less half its range."""
    pixels = x_q.permute(0, 2, 3, 1).contiguous()
    if bits <= 8:
        return (pixels - (1 << bits - 1)).to(torch.int8), None
    return ((pixels >> 8) - (1 << bits - 9)).to(torch.int8), ((pixels & 255) - 128).to(torch.int8)


@pytest.mark.parametrize(("activation_bits", "split"), [(8, False), (10, False), (16, True)])
@pytest.mark.parametrize("kind", list(SHAPES))
def test_sums_equal_those_of_whole_numbers(
    kind: str, activation_bits: int, split: bool, ops: ModuleType, device: torch.device
) -> None:
    """The kernel's own sum is compared, scales being 1, as float32 rounds it once."""
    own = SHAPES[kind]
    qparams = QParams(1.0, (1 << activation_bits) // 3, activation_bits)
    x_q = integers((own.images, own.channels, own.height, own.width), 0, qparams.qmax + 1, 0)
    w = integers((own.filters, own.channels // own.groups, own.kernel, own.kernel), -128, 128, 1)
    x_q.view(-1)[:3], w.view(-1)[:3] = qparams.qmax, -128  # the largest products among them
    sums = F.conv2d((x_q - qparams.zero_point).double(), w.double(), None, own.stride, 0, own.dilation, own.groups)
    high, low = (None if one is None else one.to(device) for one in as_bytes(x_q, activation_bits))
    step = at({1.0: qparams}, 1.0, device)
    geometry = (*sums.shape[2:], own.kernel, own.kernel, own.stride, own.stride, own.dilation, own.dilation, own.groups)
    weight = w.flatten(2).transpose(1, 2).contiguous().to(device, torch.int8)
    column_sums = w.flatten(1).sum(1).to(device, torch.int32)
    ones = torch.ones(own.filters, device=device)
    expected = sums.float().permute(0, 2, 3, 1).contiguous()
    more = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    for residual in (None, more):
        y = ops.integer_product(
            *(high, low, weight, None, column_sums, ones, None, None if residual is None else residual.to(device)),
            *(step.scales, step.integers, geometry, split, torch.float32),
        )
        assert torch.equal(y.cpu(), expected if residual is None else expected + residual)


@pytest.mark.parametrize("need", [Need.RESIDUAL, Need.UNPACKING])
def test_results_do_not_depend_on_the_tile(
    need: Need, ops: ModuleType, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums are exact and every output is computed by itself, so tiles may be chosen by time alone."""
    packed = need is Need.UNPACKING
    x_q, steps = integers((1, 70, 1, 130), 0, 256, 0), at({1.0: QParams(0.03, 77, 8)}, 1.0, device)
    high, _ = as_bytes(x_q, 8)
    w = integers((130, 1, 35 if packed else 70), 0, 256, 1)
    weight = w.to(device, torch.uint8) if packed else (w - 128).to(device, torch.int8)
    zero, sums = torch.full((130,), 7, dtype=torch.int8, device=device), integers((130,), -99, 99, 2).to(device).int()
    scale, residual = torch.rand(130, device=device), torch.randn(1, 1, 130, 130, device=device)
    results = []
    for tile in candidates(Product(130, 130, 70, weights=1 + packed), Gpu(132, 232_448, 4096), need):
        monkeypatch.setattr(product_ops_of(ops), "choose_tile", lambda *_, tile=tile: tile)
        results.append(
            ops.integer_product(
                *(high.to(device), None, weight, zero if packed else None, sums, scale, None, residual),
                *(steps.scales, steps.integers, (1, 130, *(1,) * 7), False, torch.float32),
            )
        )
    assert len(results) >= 7
    assert all(torch.equal(result, results[0]) for result in results)


def product_ops_of(ops: ModuleType) -> ModuleType:
    return sys.modules[f"{ops.__package__}.product_ops"]


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("nibbles", [False, True])
@pytest.mark.parametrize(("rows", "half"), [(70, 33), (300, 70)])
def test_a_gated_product_is_quantized_as_if_it_had_been_stored(
    rows: int, half: int, bits: int, nibbles: bool, ops: ModuleType, device: torch.device
) -> None:
    """To one integer, for its value is rounded to float32 in another order. Odd channels; values beside their gates."""
    torch.manual_seed(0)
    layer = nn.Linear(37, 2 * half)
    qparams = QParams.from_range(-2.0, 3.0, bits)
    weight = round_to_nearest(layer.weight.data, weight_qparams(layer.weight.data, 4, WeightRange.MIN_MAX))
    own = QuantizedLayer("layer", weight, layer.bias.data, ActivationSchedule.static(qparams))
    steps = Steps(device, 2)
    step, after = steps.qparams(own.schedule), steps.qparams(ActivationSchedule.of(GRIDS))
    weights = lay_out(
        own, (weight.w_q.int() - weight.qparams.zero_point.view(-1, 1)).to(torch.int8), device, nibbles=nibbles
    )
    made = IntegerLinear(37, weights, step, CudaFusedOps(ops))
    x = torch.randn(rows, 37)
    for timestep in (PLAIN, RELAXED):
        steps.set(torch.tensor(timestep))
        gated = made.multiply_gated(made.quantize(x.to(device)), after, torch.float32)
        value, gate = F.linear(
            fake_quantize(x, qparams).double(), weight.dequantize().double(), layer.bias.double()
        ).chunk(2, -1)
        expected = quantize((value * F.gelu(gate)).float(), GRIDS[timestep])
        apart = (whole(gated, timestep) - expected).abs()
        assert apart.max() <= 1
        assert (apart > 0).float().mean() < 0.01
        assert expected.unique().numel() > 50  # else nothing was looked at


@pytest.mark.parametrize("timestep", [PLAIN, RELAXED])
@pytest.mark.parametrize("upsample", [1, 2])
def test_images_are_quantized_with_their_border(
    upsample: int, timestep: float, ops: ModuleType, device: torch.device
) -> None:
    x = torch.randn(2, 70, 5, 3, generator=torch.Generator().manual_seed(0))
    quantized = CudaFusedOps(ops).quantize(x.to(device), at(GRIDS, timestep, device), padding=(1, 2), upsample=upsample)
    qparams = GRIDS[timestep]
    expected = quantize(F.interpolate(x, scale_factor=float(upsample), mode="nearest"), qparams)
    padded = F.pad(expected, (2, 2, 1, 1), value=qparams.zero_point)
    assert torch.equal(whole(quantized, timestep), padded.permute(0, 2, 3, 1).long())
    assert expected.unique().numel() > 100  # else nothing was looked at


def test_halves_are_rounded_to_even(ops: ModuleType, device: torch.device) -> None:
    qparams = QParams(1.0, 128, 8)
    x = torch.arange(-300.0, 300.0).view(1, -1, 1) * 0.5
    quantized = CudaFusedOps(ops).quantize(x.to(device), at({PLAIN: qparams}, PLAIN, device))
    assert torch.equal(whole(quantized, PLAIN), quantize(x, qparams).long())


@pytest.mark.parametrize("timestep", [PLAIN, RELAXED])
def test_norms_are_those_of_torch(timestep: float, ops: ModuleType, device: torch.device) -> None:
    """To one integer: the last bits of a mean depend on the order of its sum. A mean far from zero costs no digits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 24, 9, 11, generator=generator) + 50
    added = torch.randn(2, 30, generator=generator)[:, 3:27]  # a part of all projections of the time
    norm, layer = nn.GroupNorm(4, 24).requires_grad_(False), nn.LayerNorm(24).requires_grad_(False)
    for one in (norm, layer):
        one.weight.copy_(1 + 0.1 * torch.randn(24, generator=generator))
        one.bias.copy_(torch.randn(24, generator=generator))
    tokens = x.flatten(2).transpose(1, 2)
    gated = torch.randn(2, 5, 26, generator=generator)
    value, gate = gated.chunk(2, -1)
    expected = {
        "group": F.silu(norm(x + added[..., None, None])).permute(0, 2, 3, 1),
        "layer": layer(tokens),
        "geglu": value * F.gelu(gate),
    }
    fused_ops, step = CudaFusedOps(ops), at(GRIDS, timestep, device)
    norm, layer = norm.to(device), layer.to(device)
    made = {
        "group": fused_ops.group_norm(x.to(device), norm, step, silu=True, add=added.to(device)),
        "layer": fused_ops.layer_norm(tokens.to(device), layer, step),
        "geglu": fused_ops.geglu(gated.to(device), step),
    }
    for name, y in expected.items():
        apart = (whole(made[name], timestep) - quantize(y, GRIDS[timestep])).abs()
        assert apart.max() <= 1, name
        assert (apart > 0).float().mean() < 0.01, name


def test_each_step_has_its_own_grid_without_asking_the_device(device: torch.device) -> None:
    steps = Steps(device, 3)
    changing = steps.qparams(ActivationSchedule.of(GRIDS))
    static = steps.qparams(ActivationSchedule.static(QParams(0.5, 3, 4)))
    assert steps.qparams(ActivationSchedule.of(GRIDS)) is changing  # equal ones share what is quantized with them
    for timestep in (1000, 500.1, 500, 499.9, 0):  # 500 lies between the two: the noisier
        steps.set(torch.tensor(timestep))
        nearest = changing.schedule.at(timestep)
        assert float(changing.scales[0]) == torch.tensor(nearest.scale)
        assert changing.integers[:3].tolist() == [nearest.zero_point, nearest.qmax, int(nearest.bits > 8)]
        assert static.integers[0] == 3
    steps.set(torch.tensor([500.0, 501.0]))
    assert changing.scales.isnan().any()  # a call is at one step
    steps.set(torch.tensor([500.0, 500.0]))
    assert not changing.scales.isnan().any()
