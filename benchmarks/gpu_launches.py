"""What a denoiser call asks of a card, counted without one: operators, bytes, operations, and the least time.

    python benchmarks/gpu_launches.py                  # SDXL, batch 2 at 128x128; Stable Diffusion 1.5, 8 at 64x64
    python benchmarks/gpu_launches.py --int8 1100 --half 700 --copy 4.3    # a card's measured rates

Each operator's least time is that of its bytes, each read or written once, or that of its operations, whichever is
longer; nothing is taken for launches, of which most operators are one and a group norm two or three. Rates are an
H200's by its data sheet unless told otherwise.
"""

import argparse
from collections.abc import Iterable

from gpu.counts import Launch, count_half, count_ours
from gpu.denoisers import SHAPES, Case
from gpu.table import qparams

CASES = {"sdxl": Case(2, 128), "sd15": Case(8, 64)}
KINDS = {
    "products of bytes": {"integer_product"},
    "products with GEGLU and its quantization": {"gated_product"},
    "products in 16 bits": {"convolution", "addmm", "mm"},
    "attention": {"attention"},
    "normalization, activation, quantization": {
        *("quantize_image", "layer_norm_bytes", "geglu_bytes", "group_norm_affine"),
        *("native_group_norm", "native_layer_norm", "silu", "gelu", "mul", "add", "add_", "div"),
    },
    "copies": {"cat", "clone", "_to_copy", "copy_", "upsample_nearest2d", "contiguous"},
}
OTHER = "all else"
HEAD = "kind", "operators", "GB", "TOP", "ms at least"


def main() -> None:
    options = _options()
    for model, case in CASES.items():
        for title, count in (("float16 as it is", count_half), ("bitbrush W8A8", count_ours)):
            print(f"\n{model}, {case.name}, {title}:\n")
            print("\n".join(qparams(HEAD, _rows(count(SHAPES[model], case), options))), flush=True)


def _rows(launches: list[Launch], options: argparse.Namespace) -> Iterable[tuple[str, ...]]:
    groups = {kind: [one for one in launches if _kind(one) == kind] for kind in (*KINDS, OTHER)}
    for kind, members in {**groups, "together": launches}.items():
        if members:
            moved, operations = sum(one.bytes for one in members), sum(one.operations for one in members)
            least = sum(_seconds(one, options) for one in members)
            yield kind, str(len(members)), f"{moved / 1e9:.1f}", f"{operations / 1e12:.1f}", f"{1000 * least:.1f}"


def _kind(launch: Launch) -> str:
    return next((kind for kind, names in KINDS.items() if launch.name in names), OTHER)


def _seconds(launch: Launch, options: argparse.Namespace) -> float:
    rate = options.int8 if launch.name.endswith("_product") else options.half
    return max(launch.bytes / options.copy, launch.operations / rate) / 1e12


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--int8", type=float, default=1979.0, help="tera-operations a second on bytes")
    parser.add_argument("--half", type=float, default=989.0, help="on 16-bit floats")
    parser.add_argument("--copy", type=float, default=4.8, help="terabytes a second")
    return parser.parse_args()


if __name__ == "__main__":
    main()
