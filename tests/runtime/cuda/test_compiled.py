"""The kernels become machine code for cards that aren't here, with the matrix instructions they should have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PRODUCTS = {"product_kernel", "gated_product_kernel"}
KERNELS = PRODUCTS | {"quantize_kernel", "moments_kernel", "affine_kernel", "layer_norm_kernel", "geglu_kernel"}


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "unit", "spilled"), [(80, "mma.sync", 32), (90, "wgmma", 32)])
def test_kernels_compile_for_cards(capability: int, unit: str, spilled: int, tmp_path: Path) -> None:
    """``spilled``: bytes of a thread's that may lie in memory for want of registers, outside of the inner loop."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compiling.py")
    command = [sys.executable, str(script), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["kernel"] for one in made} == KERNELS
    assert all(unit in one["units"] for one in made if one["kernel"] in PRODUCTS)
    # Pixels and weights come sixteen bytes at a time; singly come at most the filters' zero points.
    assert all(one["singly"] <= 4 for one in made if one["kernel"] in PRODUCTS)
    assert all(one["stack"] <= spilled for one in made), made
