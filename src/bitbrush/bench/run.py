"""A whole benchmark: pictures, figures, ``results.json``, ``report.html``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitbrush.bench.collection import Work
from bitbrush.bench.figures import bench_figures
from bitbrush.bench.files import write_whole
from bitbrush.bench.qdiffbench import Networks, Protocol, compute_all, generate_all
from bitbrush.bench.report import render_report
from bitbrush.bench.results import results_document, results_text

RESULTS, REPORT, PICTURES = "results.json", "report.html", "pictures"


def require_bench_folder(directory: Path) -> None:
    """Raises ValueError if something stands at ``directory`` that no benchmark wrote."""
    if not directory.exists():
        return
    known = {RESULTS, REPORT, PICTURES}
    foreign = sorted({path.name for path in directory.iterdir()} - known) if directory.is_dir() else ["a file"]
    if foreign:
        raise ValueError(f"{directory} holds {foreign[0]}, which no benchmark wrote; choose another directory")


def run_bench(
    reference: str,
    candidates: Mapping[str, str],
    protocol: Protocol,
    networks: Networks,
    directory: Path,
    work: Work,
    *,
    pictures: Path | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Benchmarks ``candidates`` (sources by name) against ``reference`` and writes ``directory``; gives the results.

    ``pictures``: where pictures are kept and found again, ``directory/pictures`` if not given. Every process of
    ``work.ranks`` makes its share of pictures and features; the first puts the figures together and writes.
    Raises ValueError if the reference cannot be loaded, or ``directory`` holds something else.
    """
    require_bench_folder(directory)
    made = generate_all(reference, candidates, protocol, pictures or directory / PICTURES, work)
    compute_all(made, networks, work)
    document: dict[str, Any] = {}
    if work.ranks.leads:
        figures = bench_figures(made, protocol.sets, networks, work.progress)
        document = results_document(figures, made, protocol, networks, command)
        write_whole(results_text(document), directory / RESULTS)
        write_whole(render_report(document, figures, made), directory / REPORT)
    work.ranks.wait()
    return document
