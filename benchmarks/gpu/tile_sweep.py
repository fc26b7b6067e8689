"""Whether tiles are well chosen: the heaviest products of a denoiser, each with other tiles than its own.

``python -m gpu.tile_sweep MODEL DEVICE BATCHxSIZE`` writes a JSON line for each, as soon as it is measured.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from bitbrush.runtime.cuda import product_ops
from bitbrush.runtime.cuda.tiles import Gpu, Need, Product, Tile, candidates, choose_tile, clocks
from gpu.denoisers import PLAIN, SHAPES, Case, make_denoiser
from gpu.rates import Measured, products_of, seconds_of
from gpu.subjects import OURS, SUBJECTS

PRODUCTS, TILES = 20, 5
"""At most; each tile is compiled, which takes seconds."""


def main() -> None:
    model, where, case = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    device, shape = torch.device(where), SHAPES[model]
    with torch.no_grad():
        denoiser = make_denoiser(shape, device, torch.float32)
        call = SUBJECTS[OURS].prepare(denoiser, shape, device)(Case(*map(int, case.split("x"))))
        found = [(one, *_asked(one)) for one in products_of(denoiser, lambda: call(PLAIN))]
        found.sort(key=lambda each: -each[0].count * clocks(each[1], choose_tile(*each[1:]), *each[2:]))
        for one, product, gpu, need in found[:PRODUCTS]:
            print(json.dumps(_measured(one, product, gpu, need, device)), file=answers, flush=True)


def _asked(one: Measured) -> tuple[Product, Gpu, Need]:
    """Returns the arguments by which the product's tile is chosen."""
    asked: list[tuple[Product, Gpu, Need]] = []

    def note(*args: Any) -> Tile:
        asked.append(args)
        return choose_tile(*args)

    with _choosing(note):
        one.again()
    return asked[0]


@contextmanager
def _choosing(choose: Callable[..., Tile]) -> Iterator[None]:
    ops: Any = product_ops
    ops.choose_tile = choose
    try:
        yield
    finally:
        ops.choose_tile = choose_tile


def _measured(one: Measured, product: Product, gpu: Gpu, need: Need, device: torch.device) -> dict[str, Any]:
    """``tiles``: milliseconds, TOP/s and the reckoned clocks by tile, the chosen one first."""
    tiles = {}
    for tile in _tiles(product, gpu, need):
        with _choosing(lambda *_, tile=tile: tile):
            seconds = seconds_of(one.again, device)
        name = f"{tile.m}x{tile.n}x{tile.k}, {tile.stages} stages"
        figures = round(1000 * seconds, 4), one.rate(seconds), round(clocks(product, tile, gpu, need))
        tiles[name] = dict(zip(("milliseconds", "tera_operations", "clocks"), figures, strict=True))
    return {**one.told(), "tiles": tiles}


def _tiles(product: Product, gpu: Gpu, need: Need) -> list[Tile]:
    """The best by reckoning; of the first one also with a load less under way, for two programs a multiprocessor."""
    best = sorted(candidates(product, gpu, need), key=lambda tile: clocks(product, tile, gpu, need))[:TILES]
    fewer = [replace(one, stages=one.stages - 1) for one in best[:2] if one.stages > 2]
    return [*best, *fewer]


if __name__ == "__main__":
    main()
