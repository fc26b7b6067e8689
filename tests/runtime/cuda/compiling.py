"""Compiles the kernels for a GPU that is not there: ``python compiling.py 90 [tiles]``; JSON lines.

The number is a compute capability. Stands in for the driver and compiles what would be launched at the shapes of SDXL;
with ``tiles``, the products alone, with every tile that may be chosen.
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from bitbrush.runtime.cuda import ops, product_ops
from bitbrush.runtime.cuda.ops import Geometry
from bitbrush.runtime.cuda.tiles import Gpu, Need, Product, candidates

CARDS = {80: Gpu(108, 166_912, 2048), 90: Gpu(132, 232_448, 4096)}

SHAPES = (2, 64, 640, 640, 3), (2, 128, 640, 320, 3), (1, 45, 1280, 1280, 1)
"""Images, their height and width, channels, filters, taps in each direction."""


class Driver:
    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


def used(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of memory that it has for want of more of them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        told = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    return {name.lower(): int(re.search(rf"{name}:(\d+)", told)[1]) for name in ("REG", "STACK")}


def main() -> None:
    capability, tiles = int(sys.argv[1]), sys.argv[2:] == ["tiles"]
    compile_only(capability)
    launch_every_tile(capability) if tiles else launch_all()


def compile_only(capability: int) -> None:
    """Makes launches compile and print what came of it."""
    driver.set_active(Driver(capability))
    launch = JITFunction.run

    def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        made = launch(self, *args, grid=grid, warmup=True, **kwargs)
        ptx = made.asm["ptx"]
        units = [name for name in ("wgmma", "mma.sync") if name in ptx]
        singly = len(re.findall(r"ld\.global\S*\.b8", ptx))
        told = {"kernel": self.fn.__name__, "units": units, "singly": singly, **used(made.asm["cubin"])}
        print(json.dumps(told), flush=True)
        return made

    JITFunction.run = compiled
    product_ops.gpu_of = lambda _: CARDS[capability]


def launch_every_tile(capability: int) -> None:
    """Launches a product of each need with each of its tiles."""
    for need in (Need.NOTHING, Need.RESIDUAL, Need.GATE, Need.UNPACKING):
        weights = 2 if need is Need.UNPACKING else 1
        for tile in candidates(Product(8192, 10240, 1280, weights=weights), CARDS[capability], need):
            product_ops.choose_tile = lambda *_, tile=tile: tile
            print(json.dumps({"need": need.name, **asdict(tile)}), flush=True)
            launch_product(need)


def launch_product(need: Need) -> None:
    """Launches the convolution or gated product of a need that takes the most registers."""
    scales, integers, ones = torch.ones(4), torch.zeros(4, dtype=torch.int32), torch.ones(10240)
    sums, zero = torch.zeros(10240, dtype=torch.int32), torch.zeros(10240, dtype=torch.int8)
    if need is Need.GATE:
        rows, weight = (torch.zeros(2, size, 1280, dtype=torch.int8) for size in (1024, 5120))
        weight = weight.view(10240, 1, 1280)
        ops.gated_product(rows, rows, weight, None, sums, ones, ones, *(scales, integers) * 2, False, True)
        return
    packed = need is Need.UNPACKING
    high = torch.zeros(2, 66, 66, 640, dtype=torch.int8)
    weight = torch.zeros(640, 9, 320, dtype=torch.uint8) if packed else torch.zeros(640, 9, 640, dtype=torch.int8)
    residual = None if need is Need.NOTHING else torch.zeros(2, 64, 64, 640, dtype=torch.bfloat16)
    ops.integer_product(
        *(high, high, weight, zero[:640] if packed else None, sums[:640], ones[:640], ones[:640], residual),
        *(scales, integers, Geometry(64, 64, 3, 3), False, torch.bfloat16),
    )


def launch_all() -> None:
    """Launches every kernel."""
    scales, integers = torch.ones(4), torch.zeros(4, dtype=torch.int32)
    ones = torch.ones(10240)
    sums = torch.zeros(10240, dtype=torch.int32)
    for residual in (False, True):
        for images, size, channels, filters, kernel in (
            (2, 64, 640, 640, 3),
            (2, 128, 640, 320, 3),
            (1, 45, 1280, 1280, 1),
        ):
            high = torch.zeros(images, size + kernel - 1, size + kernel - 1, channels, dtype=torch.int8)
            weight = torch.zeros(filters, kernel * kernel, channels, dtype=torch.int8)
            added = torch.zeros(images, size, size, filters, dtype=torch.bfloat16) if residual else None
            ops.integer_product(
                *(high, high, weight, None, sums[:filters], ones[:filters], ones[:filters], added, scales, integers),
                *(Geometry(size, size, kernel, kernel), False, torch.bfloat16),
            )
    rows, zero = torch.zeros(2, 1024, 1280, dtype=torch.int8), torch.zeros(10240, dtype=torch.int8)
    for columns, w_zero in ((1280, None), (640, zero)):
        weight = torch.zeros(10240, 1, columns, dtype=torch.int8 if w_zero is None else torch.uint8)
        ops.gated_product(rows, rows, weight, w_zero, sums, ones, ones, *(scales, integers) * 2, False, True)
    x = torch.zeros(2, 64, 64, 640, dtype=torch.bfloat16)
    factor, shift = ops.group_norm_affine(x, torch.ones(640), torch.ones(640), None, 32, 1e-5)
    ops.quantize_image(x, factor, shift, scales, integers, (1, 1), 1, True, True)
    ops.layer_norm_bytes(x.flatten(1, 2), torch.ones(640), torch.ones(640), 1e-5, scales, integers, True)
    ops.geglu_bytes(x.flatten(1, 2), scales, integers, True)


if __name__ == "__main__":
    main()
