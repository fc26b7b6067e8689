"""The results as a table for a terminal, and as Markdown."""

from collections.abc import Mapping, Sequence
from statistics import median

from cpu.registry import BF16, FP32
from cpu.results import Row

HEAD = ("subject", "s", "x fp32", "x bf16", "peak MiB", "of fp32", "load s")


def table(rows: Mapping[str, Row]) -> str:
    """Median seconds; ratios to the anchors, paired by round: median (smallest to largest); memory; load time.

    Where fp32 was not measured beside a subject, because both do not fit into memory, the ratio to it is that to bf16
    times the one between the anchors, and bears a ``~``.
    """
    lines = [HEAD, *(_cells(name, row, rows) for name, row in rows.items())]
    widths = [max(len(line[column]) for line in lines if len(line) > 2) for column in range(len(HEAD))]
    widths[0] = max(len(line[0]) for line in lines)
    return "\n".join(_line(line, widths) for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name = cells[0].ljust(widths[0])
    if len(cells) == 2:
        return f"| {name} | {cells[1]}"
    return (
        f"| {name} | " + " | ".join(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)) + " |"
    )


def _cells(name: str, row: Row, rows: Mapping[str, Row]) -> tuple[str, ...]:
    if "error" in row:
        return name, row["error"]
    return (
        name,
        f"{median(row['seconds']):.2f}",
        _ratio(row, FP32) or _through_bf16(row, rows) or "",
        _ratio(row, BF16) or "",
        f"{row['peak_mib']:.0f}" if "peak_mib" in row else "",
        _share(row, rows.get(FP32)),
        f"{row['load_seconds']:.0f}" if "load_seconds" in row else "",
    )


def _ratio(row: Row, anchor: str) -> str | None:
    beside = row["beside"].get(anchor)
    if beside is None:
        return None
    ratios = [theirs / own for theirs, own in zip(beside, row["seconds"], strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def _through_bf16(row: Row, rows: Mapping[str, Row]) -> str | None:
    between = rows.get(FP32, {}).get("beside", {}).get(BF16)
    beside = row["beside"].get(BF16)
    if between is None or beside is None:
        return None
    fp32_over_bf16 = median(s / b for s, b in zip(rows[FP32]["seconds"], between, strict=True))
    return f"~{median(b / s for b, s in zip(beside, row['seconds'], strict=True)) * fp32_over_bf16:.2f}"


def _share(row: Row, fp32: Row | None) -> str:
    if fp32 is None or "peak_mib" not in row or "peak_mib" not in fp32:
        return ""
    return f"{row['peak_mib'] / fp32['peak_mib']:.2f}"
