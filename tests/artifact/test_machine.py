"""What the machine has left."""

import shutil
from pathlib import Path

import pytest

from bitbrush.artifact import machine
from bitbrush.artifact.machine import available_disk, available_memory, resident_memory


def test_memory_that_can_be_taken_counts_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:  300 kB\nSwapFree:  20 kB\nHugePages_Free: 0\n")
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    assert available_memory() == 320 * 1024
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "none")
    assert available_memory() is None


def test_resident_memory_is_told_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = resident_memory()
    assert now > 50 * 2**20
    monkeypatch.setattr(machine, "STATM", tmp_path / "none")
    assert resident_memory() >= now


def test_disk_is_looked_at_where_the_folder_will_be(tmp_path: Path) -> None:
    expected = shutil.disk_usage(tmp_path).free
    assert available_disk(tmp_path / "not" / "there" / "yet") == pytest.approx(expected, abs=1 << 28)
