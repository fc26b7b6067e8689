"""Branches of low rank: the best approximation of the weight, in integers, and a layer that computes the same."""

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from bitbrush.network.lazy_weights import LazyWeight, set_lazy_weight
from bitbrush.network.low_rank import (
    LARGEST_SHARE,
    BranchedLayer,
    branch_,
    branch_layers,
    branch_ranks,
    factor_bits,
    factors,
    rank_of,
    set_factors,
    weight_reader,
)
from bitbrush.numerics.affine import QParams, fake_quantize


def layers() -> list[nn.Conv2d | nn.Linear]:
    torch.manual_seed(0)
    return [
        nn.Linear(24, 40),
        nn.Linear(40, 24, bias=False),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.Conv2d(8, 24, (1, 3), padding=(0, 2), dilation=(1, 2), padding_mode="circular"),
    ]


def branched(layer: nn.Conv2d | nn.Linear, rank: int, bits: int = 4) -> BranchedLayer:
    parent = nn.Sequential(copy.deepcopy(layer))
    read = weight_reader(layer)
    branch_(parent, {"0": rank})
    made = parent[0]
    set_factors(made, read, factors(layer.weight, rank, bits))
    return made


@pytest.mark.parametrize("layer", layers(), ids=str)
def test_a_branched_layer_computes_the_same(layer: nn.Conv2d | nn.Linear) -> None:
    x = torch.randn(2, 5, 5, layer.in_features) if isinstance(layer, nn.Linear) else torch.randn(2, 8, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(branched(layer, 3)(x), layer(x), rtol=1e-5, atol=1e-5)


def test_factors_are_integers_near_the_best_approximation() -> None:
    generator = torch.Generator().manual_seed(0)
    decaying = torch.diag(0.7 ** torch.arange(48.0))
    left, right = (torch.linalg.qr(torch.randn(48, 48, generator=generator))[0] for _ in range(2))
    weight, rank = left @ decaying @ right, 6
    best = float((0.7 ** (2 * torch.arange(rank, 48.0))).sum())
    for bits, most in ((8, 1.02), (4, 2.0)):
        found = factors(weight, rank, bits)
        assert found.up.qparams.bits == found.down.qparams.bits == bits
        assert int(found.up.w_q.max()) < 1 << bits
        left_over = (weight - found.up.dequantize() @ found.down.dequantize()).square().sum()
        assert best <= float(left_over) < most * best
    again = factors(weight, rank, 4)
    assert torch.equal(again.up.w_q, found.up.w_q)


def test_factors_do_not_hang_on_where_the_weight_lies() -> None:
    """LAPACK's last bits do: in float32 28 of these 200 had other integers, and so did a job that was gone on with."""
    for seed in range(40):
        weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(seed))
        expected = factors(weight, 4, 4)
        for offset in range(5):
            elsewhere = torch.empty(weight.numel() + offset)[offset:].view(weight.shape).copy_(weight)
            for part in ("up", "down"):
                own, wanted = getattr(factors(elsewhere, 4, 4), part), getattr(expected, part)
                assert torch.equal(own.w_q, wanted.w_q)
                assert torch.equal(own.qparams.scale, wanted.qparams.scale)


def test_the_random_numbers_of_others_stay() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    factors(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)), 2, 4)
    assert torch.equal(torch.rand(4), expected)


def test_errors_of_the_input_reach_the_output_through_what_is_left_over() -> None:
    """A quarter of the energy left over lets a quarter of the squared error through, if the error is white."""
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(64, 64, bias=False)
    u, v = (torch.linalg.qr(torch.randn(64, 64, generator=generator))[0] for _ in range(2))
    layer.weight.data = u @ torch.diag(torch.cat([torch.full((8,), 3**0.5 * 7**0.5), torch.ones(56)])) @ v
    made = branched(layer, 8)
    x, qparams = torch.randn(4096, 64, generator=generator), QParams.from_range(-4.0, 4.0, 4)
    with torch.no_grad():
        exact = layer(x)
        plain = (layer(fake_quantize(x, qparams)) - exact).square().mean()
        beside = (made.residual(fake_quantize(x, qparams)) + made.up(made.down(x)) - exact).square().mean()
    assert float(beside / plain) == pytest.approx(0.25, rel=0.15)


def test_small_layers_get_a_lower_rank() -> None:
    assert rank_of(nn.Linear(640, 640), 16) == 16
    assert rank_of(nn.Linear(64, 64), 16) == 8  # of 64 x 128 weights in both factors a quarter of 64 x 64
    assert rank_of(nn.Conv2d(64, 64, 3), 64) == int(LARGEST_SHARE * 64 * 576 / (64 + 576))
    assert rank_of(nn.Linear(4, 4), 16) == 0
    assert rank_of(nn.Conv2d(64, 64, 3, groups=2), 16) == 0
    assert [factor_bits(bits) for bits in (2, 4, 8)] == [4, 4, 8]


def test_names_and_ranks_rebuild_it(tiny_pipe: StableDiffusionPipeline) -> None:
    ranks = {"mid_block.resnets.0.conv1": 2, "mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 1}
    branch_(tiny_pipe.unet, ranks)
    assert branch_ranks(tiny_pipe.unet) == ranks
    assert branch_layers(tiny_pipe.unet) == {f"{name}.{part}" for name in ranks for part in ("up", "down")}


def test_weights_that_are_held_elsewhere_stay_there() -> None:
    layer = nn.Linear(32, 32)
    weight, reads = layer.weight.detach(), []
    set_lazy_weight(layer, LazyWeight(lambda: reads.append(1) or weight.clone()))  # type: ignore[func-returns-value]
    made = branched(layer, 2)
    before = len(reads)
    assert made.residual._parameters["weight"] is None
    x = torch.randn(3, 32)
    with torch.no_grad():
        torch.testing.assert_close(made(x), nn.functional.linear(x, weight, layer.bias), rtol=1e-5, atol=1e-5)
    assert len(reads) == before + 1
