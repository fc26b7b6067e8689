"""Each row of the table of features does on each runtime what the table says."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from bitbrush.runtime.interface import RuntimeUnavailable
from tests.features.models import Models, full, named
from tests.features.row import RUNTIMES, Row, Use
from tests.features.table import PAGE, page, rows

pytest.importorskip("peft", reason="the extra 'lora' is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def known() -> dict[Any, Tensor]:
    """Results that several rows are compared with."""
    return {}


EMULATION = 1e-3
"""Largest relative distance of the emulated ``cuda`` from the reference, both in float32."""


def relative(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).norm() / expected.norm())


def cases() -> list[Any]:
    tried = [(row, runtime) for row in rows() for runtime in RUNTIMES if row.outcome(runtime) != "not tested"]
    return [
        pytest.param(
            (row, runtime),
            id=f"{row.name} on {runtime}",
            marks=pytest.mark.slow if row.slow or runtime == "cuda" else (),
        )
        for row, runtime in tried
    ]


@dataclass(frozen=True)
class Tried:
    """A row on a runtime, and results of other rows to compare with."""

    row: Row
    runtime: str
    models: Models
    known: dict[Any, Tensor]

    @property
    def model(self) -> str:
        return named(self.row.model, self.runtime)

    def pipe(self, runtime: str) -> Any:
        if runtime == "full":
            return full(self.model)
        try:
            return self.models.loaded(self.model, runtime)
        except RuntimeUnavailable as error:
            pytest.skip(str(error))

    def result(self, use: Use, runtime: str) -> Tensor:
        key = use, self.model, runtime
        if key not in self.known:
            self.known[key] = use(self.pipe(runtime))
        return self.known[key]


@pytest.fixture
def tried(request: pytest.FixtureRequest, models: Models, known: dict[Any, Tensor]) -> Tried:
    return Tried(*request.param, models, known)


@pytest.mark.parametrize("tried", cases(), indirect=True)
def test_the_table_is_right(tried: Tried) -> None:
    row, runtime = tried.row, tried.runtime
    if row.outcome(runtime) == "refused":
        pipe = tried.pipe(runtime)
        with pytest.raises(ValueError, match=f"^{re.escape(row.refused[runtime])}"):
            row.use(pipe)
    elif row.same is not None:
        assert relative(tried.result(row.use, runtime), tried.result(row.without, runtime)) <= row.same
    elif runtime == "cuda":
        expected, before = (tried.result(use, "reference") for use in (row.use, row.without))
        error = relative(tried.result(row.use, runtime), expected)
        assert error < EMULATION
        assert relative(before, expected) > 10 * error
    else:
        _assert_as_in_full_precision(tried)


def _assert_as_in_full_precision(tried: Tried) -> None:
    row, runtime = tried.row, tried.runtime
    expected, before = (tried.result(use, "full") for use in (row.use, row.without))
    error = relative(tried.result(row.use, runtime), expected)
    without = relative(tried.result(row.without, runtime), before)
    print(f"{row.name}: error {error:.4f}, without {without:.4f}, {error / without:.2f}")
    assert error < row.tolerance * without
    if expected.shape == before.shape:
        assert relative(before, expected) > 2 * error


def test_the_page_is_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: make features"


def test_names_are_unique() -> None:
    names = [row.name for row in rows()]
    assert len(set(names)) == len(names)
