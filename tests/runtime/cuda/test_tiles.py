"""Tiles: what fits the GPU, and what the cost model prefers."""

import pytest

from bitbrush.runtime.cuda.tiles import Gpu, Need, Product, candidates, choose_tile, clocks

AMPERE, HOPPER = Gpu(108, 166_912, 2048), Gpu(132, 232_448, 4096)
PRODUCTS = (
    Product(1, 1, 1),
    Product(2, 1280, 1280),
    Product(154, 640, 768, weights=2),
    Product(2048, 1280, 1280),
    Product(8192, 640, 640, taps=9),
    Product(33, 4, 5, taps=9, weights=2),
)


@pytest.mark.parametrize("gpu", [AMPERE, HOPPER])
@pytest.mark.parametrize("need", list(Need))
def test_every_tile_fits_and_the_chosen_takes_the_fewest_clocks(gpu: Gpu, need: Need) -> None:
    for product in PRODUCTS:
        tiles = list(candidates(product, gpu, need))
        assert tiles
        for tile in tiles:
            assert tile.stages * (tile.m * product.weights + tile.n) * tile.k <= gpu.shared_bytes
        chosen = choose_tile(product, gpu, need)
        assert clocks(product, chosen, gpu) == min(clocks(product, tile, gpu) for tile in tiles)


def test_large_products_have_large_tiles_and_small_ones_small() -> None:
    large, small = choose_tile(Product(8192, 5120, 640), HOPPER), choose_tile(Product(2, 16, 64), HOPPER)
    assert large.m * large.n == 128 * 256
    assert (small.m, small.n) == (16, 32)


def test_only_hopper_has_registers_for_the_tallest() -> None:
    product = Product(8192, 5120, 640)
    assert not any(tile.m == 256 for tile in candidates(product, AMPERE, Need.NOTHING))
    assert any(tile.m == 256 for tile in candidates(product, HOPPER, Need.NOTHING))
