"""Single kernels of the CPU runtime, alone on one thread: processor time at best, and the rate that makes.

python benchmarks/kernels.py
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bitbrush.runtime.attention import AttentionKernel, chunked_attention
from bitbrush.runtime.native.attention import native_attention
from bitbrush.runtime.native.build import native_library
from bitbrush.runtime.onednn.layers import pack_conv

ROUNDS = 5
TOKENS = ((4096, 4096, 8, 40), (1024, 1024, 8, 80), (1024, 1024, 10, 64), (256, 256, 8, 160), (4096, 77, 8, 40))
"""Queries, keys, heads, channels a head: of Stable Diffusion 1.5 and SDXL."""
CONVS = ((320, 320, 64), (640, 640, 32), (1280, 1280, 16), (1280, 1280, 8), (2560, 1280, 8))
"""Input and output channels, pixels a side, of 3x3 convolutions."""
BATCH = 2


def main() -> None:
    torch.set_num_threads(1)
    kernels: dict[str, AttentionKernel] = {
        "ours": native_attention(native_library()),
        "chunks of products": chunked_attention,
        "torch's operator": _fused,
    }
    for queries, keys, heads, width in TOKENS:
        q, k, v = (torch.randn(BATCH, n, heads * width).bfloat16() for n in (queries, keys, keys))
        for name, kernel in kernels.items():
            seconds = _best(partial(kernel, q, k, v, heads))
            rate = 4 * BATCH * heads * queries * keys * width / seconds / 1e9
            print(
                f"attention {queries} x {keys}, {heads} x {width}, {name}: {1000 * seconds:.1f} ms, {rate:.0f} GFLOP/s"
            )
    for inputs, outputs, side in CONVS:
        seconds = _best(_convolution(inputs, outputs, side))
        rate = 2 * BATCH * side * side * inputs * 9 * outputs / seconds / 1e12
        print(
            f"convolution {inputs} to {outputs}, {side} x {side}: {1000 * seconds:.2f} ms, {rate:.2f} TOP/s", flush=True
        )


def _fused(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    by_head = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*by_head).transpose(1, 2).flatten(2)


def _convolution(inputs: int, outputs: int, side: int) -> Callable[[], Tensor]:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    scale, zero = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int32)
    packed = pack_conv(conv, scale, torch.randint(-127, 128, conv.weight.shape, dtype=torch.int8))
    x = torch.randint(0, 256, (BATCH, inputs, side + 2, side + 2), dtype=torch.uint8)
    x = x.contiguous(memory_format=torch.channels_last)
    geometry = [1, 1], [0, 0], [1, 1], 1
    return lambda: torch.ops.onednn.qconv2d_pointwise(
        x, 1.0, 0, packed, scale, zero, None, *geometry, 1.0, 0, torch.bfloat16, "none", [], ""
    )


def _best(work: Callable[[], object]) -> float:
    work()
    found = []
    for _ in range(ROUNDS):
        before = time.process_time()
        work()
        found.append(time.process_time() - before)
    return min(found)


if __name__ == "__main__":
    main()
