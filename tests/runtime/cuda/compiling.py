"""Compiles the kernels for a card that is not there: ``python compiling.py 90`` (a compute capability); JSON lines.

Stands in for the driver and compiles what would be launched, as it would be launched at the shapes of SDXL.
"""

import json
import re
import subprocess
import sys
import tempfile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from bitbrush.runtime.cuda import ops, product_ops
from bitbrush.runtime.cuda.ops import Geometry
from bitbrush.runtime.cuda.tiles import Gpu

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
    capability = int(sys.argv[1])
    driver.set_active(Driver(capability))
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        made = launch(self, *args, grid=grid, warmup=True, **kwargs)
        ptx = made.asm["ptx"]
        units = [name for name in ("wgmma", "mma.sync") if name in ptx]
        singly = len(re.findall(r"ld\.global\S*\.b8", ptx))
        told = {"kernel": self.fn.__name__, "units": units, "singly": singly, **used(made.asm["cubin"])}
        print(json.dumps(told), flush=True)
        return made

    JITFunction.run = compile_only
    product_ops.gpu_of = lambda _: CARDS[capability]
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
