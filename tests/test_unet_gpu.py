"""The one command for a card: what it makes of results, of too little time, and of a machine without a card."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(BENCHMARKS / "unet_gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_table_compares_with_what_was_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu.table import table

    rows = {
        "bitbrush W8A8": {"seconds": [0.02, 0.01, 0.5], "allocated_mib": 300, "reserved_mib": 310},
        "compile fp16": {"seconds": [0.024, 0.024, 0.024], "allocated_mib": 500, "reserved_mib": 800},
        "graph fp16, channels-last": {"error": "out of time"},
        "torchao int8 dynamic, compiled": {"error": "No module named 'torchao'"},
    }
    rate = {"pixels": 8, "filters": 4, "products": 9, "count": 2, "milliseconds": 0.5, "tera_operations": 300.0}
    tiles = {"128x256x128, 4 stages": {"milliseconds": 0.5}, "64x64x128, 4 stages": {"milliseconds": 0.4}}
    swept = {"kernel": "integer_product", "pixels": 8, "filters": 4, "products": 9, "tiles": tiles}
    quantizing = {"device": "cuda", "seconds": 3.2, "seconds_on_processor": 30.1}
    quantizing |= {"equal_integers": 0.987, "scales_apart": 0.00002}
    errors = {"runtime": 0.0123, "bfloat16": 0.004, "quantization": 0.02}
    document = {
        "machine": {"card": "a card"},
        "conformance": {"summary": "54 passed"},
        "calls": {"steps": 20, "passed": False, "plain": errors, "relaxed": errors},
        "quantizing": quantizing,
        "limits": {"int8_tera_operations": 1200},
        "runs": {"sdxl": {"batch 2, 128x128": rows}},
        "errors": {"sdxl": 0.0123},
        "rates": {"sdxl": [rate]},
        "tiles": {"sdxl": [swept]},
    }
    lines = table(document).splitlines()
    assert "| bitbrush W8A8 | 20.00 | 1.20 |  | 300 | 310 | 0.60 |" in lines, "no ratio to what was not measured"
    assert "| compile fp16 | 24.00 | 1.00 |  | 500 | 800 | 1.00 |" in lines
    assert "| torchao int8 dynamic, compiled | No module named 'torchao' |  |  |  |  |  |" in lines
    assert "| 8 | 4 | 9 | 2 | 0.5 | 300.0 | 25% |" in lines
    own, fastest = "128x256x128, 4 stages | 0.5", "64x64x128, 4 stages | 0.4"
    assert lines[-1] == f"| integer_product | 8 | 4 | 9 | {own} | {fastest} |"
    assert any("FAILED" in line for line in lines)
    assert any("0.012; rounding to bfloat16 alone 0.004, quantization 0.02" in line for line in lines)
    assert any("98.7% of integers equal, scales 2e-05 apart" in line for line in lines)
    assert any("0.012" in line for line in lines)


def test_what_is_counted_multiplies_as_much_in_bytes_as_in_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """The products of either, however they are put together, and attention; and fewer operators and bytes."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu.counts import count_half, count_ours
    from gpu.denoisers import SHAPES, Case

    half, ours = (count(SHAPES["tiny"], Case(2, 8)) for count in (count_half, count_ours))
    assert sum(one.operations for one in ours) == sum(one.operations for one in half) > 0
    assert len(ours) < len(half)
    assert {"gated_product", "integer_product", "attention"} <= {one.name for one in ours}


def test_without_time_every_row_says_so(tmp_path: Path) -> None:
    done = run("--dry", "--budget", "0.01", "--output", str(tmp_path))
    document = json.loads((tmp_path / "gpu-dry-run.json").read_text(encoding="utf-8"))
    assert "out of time" in str(document["runs"]["tiny"])
    assert "out of time" in (tmp_path / "gpu-dry-run.md").read_text(encoding="utf-8")
    assert document["conformance"] == document["calls"] == {"error": "not run: out of time"}
    assert done.returncode == 1, "a suite that was not passed is no success"


@pytest.mark.slow
def test_all_of_it_runs_on_a_processor(tmp_path: Path) -> None:
    done = run("--dry", "--budget", "280", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "gpu-dry-run.json").read_text(encoding="utf-8"))
    assert document["conformance"]["passed"]
    assert document["quantizing"]["equal_integers"] == 1
    assert all(len(one["tiles"]) > 1 for one in document["tiles"]["tiny"])
    rows = document["runs"]["tiny"]["batch 1, 8x8"]
    assert all(rows[name]["seconds"] for name in ("eager bf16", "bitbrush W8A8", "bitbrush W8A8, relaxed step"))
    assert document["calls"]["passed"]
    assert document["errors"]["tiny"] < 0.05
    assert document["rates"]["tiny"]
