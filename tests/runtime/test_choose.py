"""Which runtime is chosen, and what is said where one cannot be had."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from packaging.version import Version

from bitbrush.runtime import choose
from bitbrush.runtime.choose import RuntimeName, choose_runtime, runtime_named
from bitbrush.runtime.cuda import package
from bitbrush.runtime.cuda.runtime import CudaRuntime
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
    assert tools.fused_ops.name == "torch operators"
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
    assert not list((tmp_path / "kernels").iterdir())


@pytest.fixture
def _card(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a card: nothing is computed on it."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a card")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = package.importlib.util.find_spec
    monkeypatch.setattr(package.importlib.util, "find_spec", lambda name: name == "triton" or found(name))
    monkeypatch.setattr(package, "triton_version", lambda: package.OLDEST_TRITON)


@pytest.mark.usefixtures("_card")
@pytest.mark.parametrize("memory", list(Memory))
def test_a_card_is_preferred_and_the_pipeline_goes_there(memory: Memory) -> None:
    chosen = choose_runtime(memory=memory)
    assert isinstance(chosen.runtime, CudaRuntime)
    assert chosen.runtime.dtype == torch.bfloat16
    assert chosen.runtime.nibbles is (memory is Memory.LOW)
    assert "a card" in chosen.runtime.description
    moved: list[torch.device] = []

    class Pipe:
        def to(self, device: torch.device) -> "Pipe":
            moved.append(device)
            return self

    chosen.place(Pipe())
    assert moved == [torch.device("cuda", 0)]
    assert choose_runtime(RuntimeName.REFERENCE).place("left alone") == "left alone"
    assert choose_runtime(RuntimeName.CUDA, dtype=torch.float32).runtime.dtype == torch.float32


@pytest.mark.usefixtures("_card")
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda m: m.setattr(torch.cuda, "get_device_capability", lambda: (7, 5)), "compute capability 7.5"),
        (lambda m: m.setattr(package.importlib.util, "find_spec", lambda _: None), r"bitbrush\[cuda\]"),
        (
            lambda m: m.setattr(package, "triton_version", lambda: Version("3.2.0")),
            "3.2.0 is inst.*upgrade torch",
        ),
        (lambda m: m.setenv("TRITON_INTERPRET", "1"), "TRITON_INTERPRET is 1"),
    ],
    ids=["old", "no triton", "old triton", "emulated"],
)
def test_a_card_that_cannot_be_used_is_told_of(
    spoil: Callable[[pytest.MonkeyPatch], None], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch)
    with pytest.raises(RuntimeUnavailable, match=told):
        choose_runtime(RuntimeName.CUDA)
    chosen = choose_runtime()
    assert chosen.runtime.name in ("onednn", "reference")
    assert chosen.shortfall is not None
    assert "the GPU is not used" in chosen.shortfall


@pytest.mark.usefixtures("_card")
def test_a_gpu_that_is_slow_at_bytes_is_left_alone_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 3))
    chosen = choose_runtime()
    assert chosen.runtime.name in ("onednn", "reference")
    assert chosen.shortfall is not None
    assert "a fifteenth of fp16's rate" in chosen.shortfall
    assert isinstance(choose_runtime(RuntimeName.CUDA).runtime, CudaRuntime)


def test_what_a_card_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(RuntimeUnavailable, match=r"torch built for CUDA.*bitbrush\[cuda\]"):
        choose_runtime(RuntimeName.CUDA)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(RuntimeUnavailable, match="sees none"):
        choose_runtime(RuntimeName.CUDA)
    assert choose_runtime().shortfall is None or "card" not in choose_runtime().shortfall


def test_nothing_imports_triton_unasked() -> None:
    script = (
        "import sys, bitbrush.runtime.choose as c, bitbrush.runtime.cuda.runtime; c.choose_runtime(); "
        "print([name for name in sys.modules if name.partition('.')[0] == 'triton'])"
    )
    hidden = "import sys; sys.modules['triton'] = None; "  # an import of it, torch's own apart, would fail
    done = subprocess.run([sys.executable, "-c", hidden + script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['triton']"


def test_the_version_of_triton_is_found_without_importing_it() -> None:
    triton = pytest.importorskip("triton")
    assert package.triton_version() == Version(triton.__version__)
