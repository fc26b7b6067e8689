"""What commands print: on streams of any encoding characters degrade, on narrow terminals nothing is cut."""

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from bitbrush.bench.experiments.comparison import Comparison
from bitbrush.bench.experiments.plans.figures import (
    CellFigures,
    FidelityFigures,
    Ratios,
    Spread,
)
from bitbrush.bench.experiments.plans.plan_list import Plan
from bitbrush.bench.experiments.sensitivity.analysis import StepSensitivity
from bitbrush.bench.experiments.sensitivity.results import write_sensitivity
from bitbrush.bench.metrics.interval import Interval
from bitbrush.cli import app
from bitbrush.cli.ablate import _print as print_ablation
from bitbrush.cli.bench import _print as print_benchmark
from bitbrush.cli.compare import _print as print_comparison
from bitbrush.cli.console import note, reporting_errors, say, say_unbroken, show, table, warn
from bitbrush.cli.encoding import spelled
from bitbrush.cli.inspect import inspect
from bitbrush.cli.plans import _print as print_cells
from bitbrush.cli.quantize import print_summary
from bitbrush.cli.sensitivity import _print as print_advice
from bitbrush.timeline.plan import SamplingPlan

ENCODINGS = ("ascii", "latin-1", "cp1252", "cp437", "shift_jis", "utf-8")
RECORDED = Path(__file__).parents[2] / "benchmarks" / "results"
UNUSUAL = "café “≥” 10⁻⁵ 漢字 😀 \udcff"


class Terminal(io.TextIOWrapper):
    """A stream that takes itself for a terminal."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        """What a reader sees: bytes of the encoding alone, without colours."""
        written = self.buffer
        assert isinstance(written, io.BytesIO)
        return re.sub(r"\x1b\[[0-9;]*m", "", written.getvalue().decode(self.encoding))


Printer = Callable[..., str]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Printer:
    """Calls a function as a command on a terminal; gives what it prints, with ``errors`` to standard error, too."""

    def of(function: Callable[[], None], *, encoding: str = "utf-8", columns: int = 200, errors: bool = False) -> str:
        streams = Terminal(encoding), Terminal(encoding)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        reporting_errors(function)()
        return streams[0].text() + (streams[1].text() if errors else "")

    return of


def interval(mean: float) -> Interval:
    return Interval(mean, mean - abs(mean) / 3, mean + abs(mean) / 3, 16)


def print_bench() -> None:
    record = json.loads((RECORDED / "bench-emoji-sd.json").read_text(encoding="utf-8"))
    print_benchmark({**record, "power": [], "gates": []})  # which the record's version did not have


def print_ablate() -> None:
    print_ablation(json.loads((RECORDED / "ablation-emoji-sd.json").read_text(encoding="utf-8")))


def print_compare() -> None:
    metrics = {"PSNR (dB)": interval(35.2), "latent MSE": interval(3e-5), "image MSE": interval(-2e-7)}
    print_comparison({"coco ≥": Comparison(metrics, metrics, np.zeros(3))}, "pcr W4A8")


def print_grid() -> None:
    figures = FidelityFigures(*(Spread(interval(value), interval(value)) for value in (3e-5, 35.2)))
    cells = [
        CellFigures(
            Plan(SamplingPlan(steps, 7.5, name), name, steps),
            is_calibrated=steps == 10,
            artifact=figures,
            recalibrated=figures,
            ratios=Ratios(interval(1.0), interval(1.1)),
        )
        for name in ("DPMSolverMultistepScheduler", "ddim")
        for steps in (10, 50)
    ]
    print_cells(cells)


def print_sensitivity(folder: Path) -> None:
    steps = [
        StepSensitivity(
            step, 1.0 * step, (40.0 - step,) * 16, interval(30), interval(3e-5), interval(-0.2), (50.0,) * 16
        )
        for step in range(10)
    ]
    facts = {"Model": "tiny", "Plan": "ddim"}
    protocol = {"seed": 0, "clip": {"name": "emoji-clip"}, "prompt_sets": [{"name": "coco"}], "disturbance": "noise"}
    prompts = [f"{number} cats" for number in range(16)]
    advice = write_sensitivity(steps, folder / "ä folder", facts=facts, protocol=protocol, prompts=prompts)
    print_advice(advice, folder / "ä folder")


HEAVY = {one.__name__: one for one in (print_bench, print_ablate, print_compare, print_grid)}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", HEAVY)
def test_what_heavy_commands_print_in_any_encoding(printed: Printer, name: str, encoding: str) -> None:
    text = printed(HEAVY[name], encoding=encoding)
    assert "codec" not in text
    whole = printed(HEAVY[name])
    assert len(text.split()) >= len(whole.split())
    if encoding == "utf-8":
        assert text == whole
    if encoding == "ascii":
        assert text.isascii()
        assert "?" not in text


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_sensitivity_and_quantize_print_in_any_encoding(
    printed: Printer, artifact: Path, tmp_path: Path, encoding: str
) -> None:
    text = printed(lambda: print_sensitivity(tmp_path), encoding=encoding)
    assert " ".join(text.split()).startswith("relax 0.8:1: disturbing a step of the last fifth")
    costs = {"rounding": SimpleNamespace(seconds=1.0, denoiser_calls_per_batch=0, peak_mib=500.0)}
    made: Any = SimpleNamespace(costs=costs, average_activation_bits=8.4)
    place = artifact.rename(tmp_path / "artifäct ≥")
    text = printed(lambda: print_summary(made, place), encoding=encoding)
    assert spelled("next: bitbrush generate ", encoding) in text
    assert "peak MiB" in text


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("options", [[], ["--layers"], ["--layer", "mid_block.resnets.0.conv1"], ["--json"]])
def test_inspect_in_any_encoding(artifact: Path, encoding: str, options: list[str]) -> None:
    result = CliRunner(charset=encoding).invoke(app, ["inspect", str(artifact), *options])
    assert result.exit_code == 0, result.output
    assert result.stdout_bytes.decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_generate_compare_and_dry_run_in_any_encoding(
    model: Path, artifact: Path, prompts: Path, tmp_path: Path, encoding: str
) -> None:
    place = artifact.rename(tmp_path / "artifäct ≥")
    held_out = tmp_path / "größe ≥.txt"
    held_out.write_text("a pink cat “≥”\na brown dog\n", encoding="utf-8")
    dry = ["--prompts", prompts, "--num-prompts", 2, "--steps", 2, "--dry-run"]
    commands = [
        ["generate", place, "a grün cat", "-o", tmp_path / "ïmages ≥"],
        ["compare", model, place, "--prompts", held_out, "--num-prompts", 2],
        ["quantize", model, "-o", tmp_path / "né ≥", *dry],
        ["inspect", tmp_path / "nowhere ≥"],
    ]
    for command, status in zip(commands, (0, 0, 0, 2), strict=True):
        result = CliRunner(charset=encoding).invoke(app, [str(one) for one in command])
        assert result.exit_code == status, result.output
        assert "codec" not in result.output
        assert ">=" in result.output or command[0] == "quantize"  # a dry run names no output


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_way_to_print_takes_any_character(printed: Printer, encoding: str) -> None:
    def every() -> None:
        figures = table(UNUSUAL, UNUSUAL, title=UNUSUAL)
        figures.add_row(UNUSUAL, UNUSUAL)
        show(figures)
        for way in (say, say_unbroken, note, warn):
            way(UNUSUAL)

    text = printed(every, encoding=encoding, errors=True)
    assert text.count(spelled(UNUSUAL, encoding)) == 9  # title, two headings, two cells, four lines
    assert spelled(UNUSUAL, "ascii") == 'cafe "">=" 10^-5 ?? ? ?'.replace('""', '"')


def require_whole(narrow: str, wide: str, columns: int) -> None:
    """Lines fit, unless a single word does not; no figure or word is broken or lost."""
    long = [line.split() for line in narrow.splitlines() if cell_len(line.rstrip()) > columns]
    assert all(len(words) <= 2 for words in long), long  # a fact's name and a path
    assert {word.strip(":") for word in wide.split()} <= {word.strip(":") for word in narrow.split()} | {"layer"}
    assert "…" not in narrow


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("name", HEAVY)
def test_tables_fit_narrow_terminals_and_nothing_is_cut(printed: Printer, name: str, columns: int) -> None:
    narrow, wide = (printed(HEAVY[name], columns=width, errors=True) for width in (columns, 400))
    require_whole(narrow, wide, columns)


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("options", [{}, {"layers": True}, {"layer": "mid_block.resnets.0.conv1"}])
def test_inspect_fits_narrow_terminals(
    printed: Printer, artifact: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], columns: int
) -> None:
    monkeypatch.chdir(artifact.parent)
    narrow, wide = (printed(lambda: inspect(Path(artifact.name), **options), columns=width) for width in (columns, 400))
    require_whole(narrow, wide, columns)


def test_paths_and_commands_are_not_broken(printed: Printer) -> None:
    path = "a-folder-with-a-name/" * 10
    assert path in printed(lambda: say_unbroken(path), columns=60).splitlines()
    words = "these are many words before the path, more than a line of them"
    for way in (say, note):
        lines = printed(lambda way=way: way(f"{words} {path} {words}"), columns=60, errors=True).splitlines()  # type: ignore[misc]
        assert [line == path for line in lines if len(line) > 60] == [True]
        assert " ".join(lines) == f"{words} {path} {words}"


def test_names_are_no_markup(printed: Printer) -> None:
    """As a candidate's, which its user gives it."""
    figures = table("figure", "[bold]w4", title="[red]:cat:")
    figures.add_row("[i]PSNR", ":dog:[/i]")
    text = printed(lambda: show(figures))
    assert all(name in text for name in ("[bold]w4", "[red]:cat:", "[i]PSNR", ":dog:[/i]"))
