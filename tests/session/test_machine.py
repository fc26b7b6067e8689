"""What the machine has left."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bitbrush.session import machine
from bitbrush.session.disk import available_disk
from bitbrush.session.machine import available_memory
from bitbrush.session.memory import peak_resident_mib, resident_memory


def set_free(monkeypatch: pytest.MonkeyPatch, *, memory: int, swap: int = 0) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=memory))
    monkeypatch.setattr("psutil.swap_memory", lambda: SimpleNamespace(free=swap))


def test_memory_that_can_be_taken_counts_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, memory=300, swap=20)
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "none")
    assert available_memory() == 320


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_linux_is_read_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``vmstat``, as in sandboxes, psutil would warn."""
    lines = ("MemTotal: 900", "MemFree: 100", "MemAvailable: 300", "Buffers: 0", "Cached: 0", "SwapTotal: 50")
    (tmp_path / "meminfo").write_text("".join(f"{line} kB\n" for line in (*lines, "SwapFree: 20", "Active: 1")))
    monkeypatch.setattr("psutil.PROCFS_PATH", str(tmp_path))
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "none")
    assert available_memory() == 320 * 1024


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
    set_free(monkeypatch, memory=300 * 1024)
    (tmp_path / "cgroup").write_text(f"9:pids:/a\n{line}\n")
    group, (limit, usage, files) = tmp_path / folder, names
    group.mkdir(parents=True)
    for name, path in (("CGROUP", "cgroup"), ("CGROUPS", ".")):
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


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_resident_memory_is_what_linux_says() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    assert resident_memory() == pytest.approx(pages * os.sysconf("SC_PAGE_SIZE"), rel=0.02)


def test_the_peak_is_at_least_what_is_held_now() -> None:
    now = resident_memory()
    assert now > 50 * 2**20
    assert peak_resident_mib() * 2**20 >= 0.95 * now  # the kernel counts both by rough counters


def test_the_peak_is_told_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    info = SimpleNamespace(rss=5 << 20, peak_wset=7 << 20)
    monkeypatch.setattr("psutil.Process", lambda: SimpleNamespace(memory_info=lambda: info))
    assert peak_resident_mib() == 7


def test_disk_is_looked_at_where_the_folder_will_be(tmp_path: Path) -> None:
    expected = shutil.disk_usage(tmp_path).free
    assert available_disk(tmp_path / "not" / "there" / "yet") == pytest.approx(expected, abs=1 << 28)
