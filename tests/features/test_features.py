"""Each row of the table of features does on each runtime what the table says."""

import re
from typing import Any

import pytest
from torch import Tensor

from bitbrush.runtime.interface import RuntimeUnavailable
from tests.features.models import Models, full, named
from tests.features.row import RUNTIMES, Row
from tests.features.table import PAGE, page, rows

pytest.importorskip("peft", reason="the extra 'lora' is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def known() -> dict[Any, Tensor]:
    """Results that several rows are compared with."""
    return {}


def relative(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).norm() / expected.norm())


def cases() -> list[Any]:
    tried = [(row, runtime) for row in rows() for runtime in RUNTIMES if row.outcome(runtime) != "not tested"]
    return [
        pytest.param(
            *(row, runtime),
            id=f"{row.name} on {runtime}",
            marks=pytest.mark.slow if row.slow or runtime == "cuda" else (),
        )
        for row, runtime in tried
    ]


@pytest.mark.parametrize(("row", "runtime"), cases())
def test_the_table_is_right(row: Row, runtime: str, models: Models, known: dict[Any, Tensor]) -> None:
    model = named(row.model, runtime)

    def loaded() -> Any:
        try:
            return models.loaded(model, runtime)
        except RuntimeUnavailable as error:
            pytest.skip(str(error))

    def without(kind: str) -> Tensor:
        key = row.without, model, kind
        if key not in known:
            known[key] = row.without(full(model) if kind == "full" else loaded())
        return known[key]

    pipe = loaded()
    if row.outcome(runtime) == "refused":
        with pytest.raises(ValueError, match=f"^{re.escape(row.refused[runtime])}"):
            row.use(pipe)
        return
    ours = row.use(pipe)
    if row.same is not None:
        assert relative(ours, without(runtime)) <= row.same
        return
    if (row.use, model) not in known:
        known[row.use, model] = row.use(full(model))
    expected = known[row.use, model]
    error, plain_error = relative(ours, expected), relative(without(runtime), without("full"))
    print(f"{row.name}: error {error:.4f}, without {plain_error:.4f}, {error / plain_error:.2f}")
    assert error < row.tolerance * plain_error
    if expected.shape == without("full").shape:
        assert relative(without("full"), expected) > 2 * error


def test_the_page_is_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: make features"


def test_names_are_unique() -> None:
    names = [row.name for row in rows()]
    assert len(set(names)) == len(names)
