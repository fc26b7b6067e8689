"""Results as Markdown."""

from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any

from gpu.subjects import COMPILED, GRAPHED, OURS

_HEAD = ("subject", "ms", f"x {COMPILED}", "x its CUDA graph", "allocated MiB", "reserved MiB", f"of {COMPILED}'s")


def table(document: dict[str, Any]) -> str:
    """Returns conformance, errors of single calls, each case's times and memory, and its slowest products.

    A ratio to what was not measured stays empty.
    """
    lines = [f"GPU: {document['machine']['card']}; conformance: {_summary(document.get('conformance', {}))}"]
    lines += _calls(document.get("calls", {}))
    lines += _quantizing(document.get("quantizing", {}))
    for model, cases in document["runs"].items():
        for case, rows in cases.items():
            lines += ["", f"{model}, {case}:", "", *markdown_table(_HEAD, _rows(rows))]
        if model in document["errors"]:
            lines += ["", f"Relative error of {OURS} to the reference runtime: {document['errors'][model]:.2g}"]
        if document["rates"].get(model):
            limits = document.get("limits", {})
            lines += ["", f"{model}: its slowest products", "", *_rates(document["rates"][model], limits)]
        if document["tiles"].get(model):
            lines += ["", f"{model}: the heaviest products with other tiles", "", *_tiles(document["tiles"][model])]
    return "\n".join(lines) + "\n"


def _summary(conformance: dict[str, Any]) -> str:
    return str(conformance.get("summary") or conformance.get("error", "not run"))


def _calls(calls: dict[str, Any]) -> Iterator[str]:
    if "passed" not in calls:
        yield f"Errors of single calls: {calls.get('error', 'not run')}"
        return
    grade = "passed" if calls["passed"] else "FAILED"
    yield f"Errors of single calls at the reference's latents, {calls['steps']} steps: {grade}"
    for part in ("plain", "relaxed"):
        row = calls[part]
        yield (
            f"- {part} steps: {row['runtime']:.2g}; rounding to bfloat16 alone {row['bfloat16']:.2g}, "
            f"quantization {row['quantization']:.2g} (medians, relative)"
        )


def _quantizing(made: dict[str, Any]) -> Iterator[str]:
    if "seconds" in made:
        yield (
            f"Quantizing on {made['device']}: {made['seconds']} s, on the processor {made['seconds_on_processor']}; "
            f"{made['equal_integers']:.1%} of integers equal, scales {made['scales_apart']:.1g} apart (median)"
        )
    elif "error" in made:
        yield f"Quantizing: {made['error']}"


def _rows(rows: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    timed = {name: median(row["seconds"]) for name, row in rows.items() if "seconds" in row}
    for name, row in rows.items():
        if name not in timed:
            yield name, row["error"], *[""] * (len(_HEAD) - 2)
            continue
        faster = (_ratio(timed.get(other), timed[name]) for other in (COMPILED, GRAPHED))
        memory = (str(row.get(key) or "") for key in ("allocated_mib", "reserved_mib"))
        share = _ratio(row.get("allocated_mib"), rows.get(COMPILED, {}).get("allocated_mib"))
        yield name, f"{1000 * timed[name]:.2f}", *faster, *memory, share


def _ratio(value: float | None, to: float | None) -> str:
    return f"{value / to:.2f}" if value and to else ""


def _rates(rates: list[dict[str, Any]], limits: dict[str, float]) -> list[str]:
    head = ("pixels", "filters", "products", "times", "ms", "TOP/s", "of the card's")
    most = limits.get("fp8_tera_operations", limits.get("int8_tera_operations"))
    rows = (
        (
            *(str(row[key]) for key in ("pixels", "filters", "products", "count", "milliseconds", "tera_operations")),
            f"{row['tera_operations'] / most:.0%}" if most else "",
        )
        for row in rates[:12]
    )
    return list(markdown_table(head, rows))


def _tiles(products: list[dict[str, Any]]) -> Iterator[str]:
    """The tile that is used beside the fastest of those tried."""
    head = ("kernel", "pixels", "filters", "products", "tile", "ms", "fastest tile", "its ms")

    def row(product: dict[str, Any]) -> tuple[str, ...]:
        milliseconds = {tile: figures["milliseconds"] for tile, figures in product["tiles"].items()}
        own, fastest = next(iter(milliseconds)), min(milliseconds, key=milliseconds.__getitem__)
        sizes = (str(product[key]) for key in ("kernel", "pixels", "filters", "products"))
        return *sizes, own, str(milliseconds[own]), fastest, str(milliseconds[fastest])

    return markdown_table(head, map(row, products))


def markdown_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Lines of a table in Markdown."""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    yield from (f"| {' | '.join(row)} |" for row in rows)
