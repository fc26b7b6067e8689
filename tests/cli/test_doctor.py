"""Command doctor: what it says of a machine, and its measurement."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from bitbrush.cli import app
from bitbrush.runtime import machine
from bitbrush.runtime.choose import choose_runtime
from bitbrush.runtime.speed import FLOATS, INTEGERS, measure_layers

CPU_INFO = """processor\t: 0
model name\t: Some CPU
flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8

processor\t: 1
model name\t: Some CPU
flags\t\t: fpu avx2
"""


@pytest.fixture
def cpu_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(CPU_INFO, encoding="utf-8")
    monkeypatch.setattr(machine, "CPU_INFO", path)
    return path


def test_json_names_the_machine_and_the_runtime(cpu_info: Path) -> None:
    assert cpu_info.exists()
    result = CliRunner().invoke(app, ["doctor", "--no-measure", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["CPU"] == "Some CPU"
    assert facts["instructions"] == "AVX2, AVX-512, AVX512-VNNI, AMX-INT8"
    assert facts["runtime"].startswith(choose_runtime().runtime.name)
    assert torch.__version__ in facts["versions"]
    assert facts["speed"] == []


def test_limits_of_the_environment_are_named(cpu_info: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_info.exists()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert machine.cpu_facts()["instructions"].endswith("AMX-INT8; limited by ONEDNN_MAX_CPU_ISA=AVX2")


def test_without_linux_torch_says_what_it_uses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "nothing")
    facts = machine.cpu_facts()
    assert torch.backends.cpu.get_cpu_capability() in facts["instructions"]
    assert facts["CPU"]


@pytest.mark.parametrize(
    ("capability", "words"), [((9, 0), "H200"), ((10, 3), "fifteenth"), ((11, 7), "no experience")]
)
def test_a_gpu_is_described_by_what_is_known_of_it(
    capability: tuple[int, int], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * 2**30))
    facts = machine.gpu_facts()
    assert facts["GPU"] == "a GPU, 80 GiB"
    assert words in facts["compute capability"]


def test_layers_are_timed_in_integers_and_in_floats() -> None:
    for speed in measure_layers(choose_runtime(), seconds=0.0):
        assert set(speed.milliseconds) == {INTEGERS, *FLOATS}
        assert min(speed.milliseconds.values()) > 0
        assert speed.faster_than("float32") == speed.milliseconds["float32"] / speed.milliseconds[INTEGERS]


def test_a_table_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("bitbrush.runtime.speed.SECONDS", 0.0)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "times float32" in result.stdout
