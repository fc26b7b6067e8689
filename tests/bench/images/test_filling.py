"""Seconds of a batch: those of its denoiser calls, without what only the first one does."""

import pytest

from bitbrush.bench.images.filling import denoising_seconds


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        ([0.0, 1.0, 2.0, 3.0], 3.0),
        ([0.0, 60.0, 61.0, 62.0, 63.0], 4.0),  # the first call compiles for a minute
        ([5.0, 6.0, 8.0], 4.0),
        ([5.0, 7.5], 2.5),  # a single call is all there is
    ],
)
def test_the_first_call_counts_like_the_others(times: list[float], seconds: float) -> None:
    assert denoising_seconds(times) == seconds
