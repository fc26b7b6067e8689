"""What the machine has left."""

import shutil
from pathlib import Path

import pytest

from bitbrush.session import machine, memory
from bitbrush.session.disk import available_disk
from bitbrush.session.machine import available_memory
from bitbrush.session.memory import resident_memory


def test_memory_that_can_be_taken_counts_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:  300 kB\nSwapFree:  20 kB\nHugePages_Free: 0\n")
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    assert available_memory() == 320 * 1024
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "none")
    assert available_memory() is None


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/a/b", "a", ("memory.max", "memory.current", "inactive_file")),
        ("4:cpu,memory:/a/b", "memory/a/b", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
    ids=["version 2, of a group above", "version 1"],
)
def test_a_containers_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, folder: str, names: tuple[str, str, str]
) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable:  300 kB\n")
    (tmp_path / "cgroup").write_text(f"9:pids:/a\n{line}\n")
    group, (limit, usage, files) = tmp_path / folder, names
    group.mkdir(parents=True)
    for name, path in (("MEMINFO", "meminfo"), ("CGROUP", "cgroup"), ("CGROUPS", ".")):
        monkeypatch.setattr(machine, name, tmp_path / path)
    (group / usage).write_text("50000\n")
    (group / "memory.stat").write_text(f"anon 40000\n{files} 3000\n")
    for most, left in (("100000", 53000), ("40000", 0), ("9000000000", 300 * 1024)):
        (group / limit).write_text(f"{most}\n")
        assert available_memory() == left
    (tmp_path / "cgroup").unlink()
    assert available_memory() == 300 * 1024
    if line.startswith("0"):
        (tmp_path / "cgroup").write_text(line)
        (group / limit).write_text("max\n")
        assert available_memory() == 300 * 1024


def test_resident_memory_is_told_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = resident_memory()
    assert now > 50 * 2**20
    monkeypatch.setattr(memory, "STATM", tmp_path / "none")
    assert resident_memory() >= 0.95 * now  # the kernel counts both by rough counters


def test_disk_is_looked_at_where_the_folder_will_be(tmp_path: Path) -> None:
    expected = shutil.disk_usage(tmp_path).free
    assert available_disk(tmp_path / "not" / "there" / "yet") == pytest.approx(expected, abs=1 << 28)
