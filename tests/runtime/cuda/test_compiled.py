"""The kernels become machine code for cards that aren't here, with the matrix instructions they should have."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PRODUCTS = {"product_kernel", "gated_product_kernel"}
KERNELS = PRODUCTS | {"quantize_kernel", "moments_kernel", "affine_kernel", "layer_norm_kernel", "geglu_kernel"}


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "unit", "spilled"), [(80, "mma.sync", 32), (90, "wgmma", 32)])
def test_kernels_compile_for_cards(capability: int, unit: str, spilled: int, tmp_path: Path) -> None:
    """``spilled``: bytes of a thread's that may lie in memory for want of registers, outside of the inner loop."""
    programs = compiled(tmp_path, capability)
    assert {program["kernel"] for program in programs} == KERNELS
    assert all(unit in program["units"] for program in programs if program["kernel"] in PRODUCTS)
    # Pixels and weights come sixteen bytes at a time; singly come at most the filters' zero points.
    assert all(program["singly"] <= 4 for program in programs if program["kernel"] in PRODUCTS)
    assert all(program["stack"] <= spilled for program in programs), programs


@pytest.mark.slow
def test_no_tile_takes_more_registers_than_its_estimate_counts_on(tmp_path: Path) -> None:
    lines = compiled(tmp_path, 90, "tiles")
    tiles, programs = lines[::2], lines[1::2]
    assert len(tiles) == 33
    for tile, program in zip(tiles, programs, strict=True):
        assert tile["registers"] - 40 <= program["reg"] <= tile["registers"], (tile, program)
        assert program["stack"] <= 32, (tile, program)


def compiled(cache: Path, *arguments: object) -> list[dict[str, Any]]:
    """Runs compiling.py in a process of its own, which compiles instead of interpreting."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, str(Path(__file__).with_name("compiling.py")), *map(str, arguments)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    return [json.loads(line) for line in process.stdout.splitlines()]
