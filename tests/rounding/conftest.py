"""The package's own number of iterations, which all other tests shorten."""

import pytest

from bitbrush.rounding import adaround, reconstruction


@pytest.fixture(autouse=True)
def _all_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "ITERATIONS", 60)
    monkeypatch.setattr(reconstruction, "CHECK_EVERY", 15)
    monkeypatch.setattr(adaround, "ITERATIONS", 2000)
