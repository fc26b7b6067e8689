"""What the C library keeps of freed memory, where it is glibc, and whose allocator is tuned."""

import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import bitbrush
from bitbrush import cli
from bitbrush.session import allocator

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")

HEAPS = """
import ctypes, threading
from bitbrush.session.allocator import allow_tuning, share_heap
if {ours}:
    allow_tuning()
share_heap()
library, all_there = ctypes.CDLL(None), threading.Barrier(4)
def take():
    all_there.wait()
    library.malloc(4096)
    all_there.wait()
threads = [threading.Thread(target=take) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
library.malloc_stats()
"""
"""Prints, by ``malloc_stats(3)``, a paragraph for every heap."""

FREED = """
import torch
from bitbrush.session.memory import resident_memory
from bitbrush.session.allocator import trim
from bitbrush.session.costs import CostLedger
def work():
    larger, small = [], []
    for _ in range(3200):
        larger.append(torch.ones(1 << 14))
        small.append(torch.ones(1 << 4))
    return small
before = resident_memory()
{how}
print(resident_memory() - before)
"""
"""Prints what is held of 200 MiB that were freed between small tensors, which are still there."""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what is free in this one is for other tests to say."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


@pytest.mark.parametrize("ours", [True, False])
def test_threads_share_a_heap_where_the_process_is_ours(ours: bool) -> None:
    assert (run(HEAPS.format(ours=ours)).stderr.count("Arena ") == 1) == ours


@dataclass
class Library:
    """A C library that notes which settings are changed."""

    changed: set[int] = field(default_factory=set)

    def mallopt(self, parameter: int, value: int) -> int:
        self.changed.add(parameter)
        return value

    def malloc_trim(self, pad: int) -> int:
        return pad


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(allocator, "_glibc", lambda: made)
    monkeypatch.setattr(allocator, "_process", allocator._Process())
    return made


@pytest.mark.parametrize("ours", [True, False])
def test_a_library_call_changes_no_setting_of_its_host(
    library: Library, ours: bool, tiny_pipe: "StableDiffusionPipeline", tmp_path: Path
) -> None:
    if ours:
        allocator.allow_tuning()
    recipe = bitbrush.METHODS["pcr"].recipe({"rounding": "nearest", "steps": 2, "num_prompts": 1, "batch_size": 1})
    made = bitbrush.quantize(tiny_pipe, recipe, ["a red cat"])
    bitbrush.load(bitbrush.save(made, tmp_path / "artifact", base_model="someone/tiny"))
    assert library.changed == ({-8, -4, -3, -2, -1} if ours else set())


def test_the_command_line_may_tune_its_process(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bitbrush", "--version"])
    with pytest.raises(SystemExit):
        cli.main()
    allocator.share_heap()
    assert library.changed == {-8}


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ("small = work()", True),
        ("small = work(); trim()", False),
        ("with CostLedger().phase('rounding'): small = work()", False),
    ],
    ids=["freed", "trimmed", "phase"],
)
def test_free_memory_goes_back(how: str, kept: bool) -> None:
    assert (int(run(FREED.format(how=how)).stdout) > 100 << 20) == kept
