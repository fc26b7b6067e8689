"""What the C library keeps of freed memory, where it is glibc."""

import platform
import subprocess
import sys

import pytest
import torch

from bitbrush.artifact.machine import resident_memory
from bitbrush.timeline.allocator import trim
from bitbrush.timeline.cost import CostLedger

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")

HEAPS = """
import ctypes, threading
from bitbrush.timeline.allocator import share_heap
if {shared}:
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


@pytest.mark.parametrize("shared", [True, False])
def test_threads_share_a_heap(shared: bool) -> None:
    code = HEAPS.format(shared=shared)
    made = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (made.stderr.count("Arena ") == 1) == shared


def freed_between_small_ones() -> list[torch.Tensor]:
    """Small tensors, between which 200 MiB of larger ones were made and freed."""
    larger, small = [], []
    for _ in range(3200):
        larger.append(torch.ones(1 << 14))
        small.append(torch.ones(1 << 4))
    return small


def test_free_memory_goes_back() -> None:
    small = freed_between_small_ones()
    before = resident_memory()
    trim()
    assert before - resident_memory() > 150 << 20
    assert len(small) == 3200


def test_a_phase_gives_back_what_it_freed() -> None:
    trim()
    before = resident_memory()
    with CostLedger().phase("rounding"):
        small = freed_between_small_ones()
        assert resident_memory() - before > 150 << 20
    assert resident_memory() - before < 50 << 20
    assert len(small) == 3200
