"""Which runtime is chosen, and what is said where one cannot be had."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitbrush.runtime import choose
from bitbrush.runtime.choose import RuntimeName, choose_runtime, runtime_named
from bitbrush.runtime.interface import RuntimeUnavailable
from bitbrush.runtime.native import build
from bitbrush.runtime.native.build import NativeUnavailable
from bitbrush.runtime.onednn.weights import Memory
from bitbrush.runtime.tools import best_tools


def _saturates() -> None:
    raise RuntimeUnavailable("sums saturate")


def test_inexact_products_are_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "require_exact_products", _saturates)
    chosen = choose_runtime()
    assert chosen.runtime.name == "reference"
    assert "sums saturate" in chosen.reason
    with pytest.raises(RuntimeUnavailable, match="sums saturate"):
        choose_runtime(RuntimeName.ONEDNN)
    with pytest.raises(RuntimeUnavailable, match="memory is low"):
        choose_runtime(memory=Memory.LOW)


def test_a_processor_that_saturates_is_found_out() -> None:
    script = "from bitbrush.runtime.onednn.probe import require_exact_products; require_exact_products()"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "is not exact on this processor" in done.stderr


def test_bad_wishes_are_named() -> None:
    with pytest.raises(ValueError, match=r"runtime is 'fast'; choose from auto, reference, onednn"):
        runtime_named("fast")
    with pytest.raises(RuntimeUnavailable, match="computes in float32"):
        choose_runtime(RuntimeName.REFERENCE, dtype=torch.bfloat16)


@pytest.fixture
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITBRUSH_CACHE", str(tmp_path))
    build.native_library.cache_clear()
    yield
    build.native_library.cache_clear()


@pytest.mark.usefixtures("_fresh")
def test_without_a_compiler_torch_does_it_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    tools = best_tools()
    assert tools.glue.name == "torch operators"
    assert tools.shortfall is not None
    assert "no C++ compiler found" in tools.shortfall


@pytest.mark.usefixtures("_fresh")
def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho no such flag >&2\nexit 1\n", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(NativeUnavailable, match=r"failed on the kernels:\nno such flag"):
        build.native_library()
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
