"""What the C library keeps of freed memory, where it is glibc."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")

HEAPS = """
import ctypes, threading
from bitbrush.session.allocator import share_heap
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


@pytest.mark.parametrize("shared", [True, False])
def test_threads_share_a_heap(shared: bool) -> None:
    assert (run(HEAPS.format(shared=shared)).stderr.count("Arena ") == 1) == shared


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
