"""The results as Markdown."""

from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any

from gpu.subjects import HALF_PRECISION, OURS

_HEAD = ("subject", "ms", "x best half precision", "MiB", "of its memory")


def table(document: dict[str, Any]) -> str:
    """Per case: median milliseconds, how many times as fast as the fastest half-precision row and what share of its
    memory; then the slowest products with their share of the card's own rate.
    """
    lines = [f"GPU: {document['machine']['card']}; conformance: {document['conformance']['summary']}"]
    pictures = document["pictures"]
    if "psnr" in pictures:
        lines.append(f"Pictures to the reference runtime's, {pictures['steps']} steps: {pictures['psnr']} dB (median)")
    elif "error" in pictures:
        lines.append(f"Pictures: {pictures['error']}")
    lines += _quantizing(document["quantizing"])
    for model, cases in document["runs"].items():
        for case, rows in cases.items():
            lines += ["", f"{model}, {case}:", "", *qparams(_HEAD, _rows(rows))]
        if model in document["errors"]:
            lines += ["", f"Relative error of {OURS} to the reference runtime: {document['errors'][model]:.2g}"]
        if document["rates"].get(model):
            lines += ["", f"{model}: its slowest products", "", *_rates(document["rates"][model], document["limits"])]
        if document["tiles"].get(model):
            lines += ["", f"{model}: the heaviest products with other tiles", "", *_tiles(document["tiles"][model])]
    return "\n".join(lines) + "\n"


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
    half = min((name for name in timed if name in HALF_PRECISION), key=timed.__getitem__, default=None)
    for name, row in rows.items():
        if name not in timed:
            yield name, row["error"], "", "", ""
            continue
        faster = f"{timed[half] / timed[name]:.2f}" if half else ""
        memory = row.get("peak_mib")
        share = f"{memory / rows[half]['peak_mib']:.2f}" if half and memory else ""
        yield name, f"{1000 * timed[name]:.2f}", faster, str(memory or ""), share


def _rates(rates: list[dict[str, Any]], limits: dict[str, float]) -> list[str]:
    head = ("pixels", "filters", "products", "times", "ms", "TOP/s", "of the card's")
    most = limits.get("int8_tera_operations")
    rows = (
        (
            *(str(row[key]) for key in ("pixels", "filters", "products", "count", "milliseconds", "tera_operations")),
            f"{row['tera_operations'] / most:.0%}" if most else "",
        )
        for row in rates[:12]
    )
    return list(qparams(head, rows))


def _tiles(products: list[dict[str, Any]]) -> Iterator[str]:
    """The tile that is used beside the fastest of those tried."""
    head = ("kernel", "pixels", "filters", "products", "tile", "ms", "fastest tile", "its ms")

    def row(product: dict[str, Any]) -> tuple[str, ...]:
        milliseconds = {tile: figures["milliseconds"] for tile, figures in product["tiles"].items()}
        own, fastest = next(iter(milliseconds)), min(milliseconds, key=milliseconds.__getitem__)
        sizes = (str(product[key]) for key in ("kernel", "pixels", "filters", "products"))
        return *sizes, own, str(milliseconds[own]), fastest, str(milliseconds[fastest])

    return qparams(head, map(row, products))


def qparams(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Lines of a table in Markdown."""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    yield from (f"| {' | '.join(row)} |" for row in rows)
