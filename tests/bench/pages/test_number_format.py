"""Numbers as people read them."""

import math

import pytest

from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.pages.number_format import format_interval, format_number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (35.2, "35.2"),
        (-3, "−3"),
        (0.1 + 0.2, "0.3"),
        (0.0005, "0.0005"),
        (3e-5, "3×10⁻⁵"),
        (-2.5e-7, "−2.5×10⁻⁷"),
        (1e-6, "10⁻⁶"),
        (2e9, "2×10⁹"),
        (9.9999999e-6, "10⁻⁵"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("interval", "mean", "between"),
    [
        (Interval(35.2146, 34.8012, 35.6203, 64), "35.21", "34.80 to 35.62"),
        (Interval(0.0, -0.5, 0.5, 8), "0.00", "−0.50 to 0.50"),
        (Interval(123456.0, 120000.0, 130000.0, 8), "123456", "120000 to 130000"),
        (Interval(3.14e-6, 2.9e-6, 3.4e-6, 64), "3.14×10⁻⁶", "2.90 to 3.40×10⁻⁶"),
        (Interval(100.0, 100.0, 100.0, 64), "100", "100 to 100"),
        (Interval(0.0, 0.0, 0.0, 64), "0.0", "0.0 to 0.0"),
        (Interval(2.5, 2.5, 2.5, 1), "2.50", ""),
        (Interval(35.2146, -math.inf, math.inf, 5), "35.2", ""),
        (Interval(3.14e-6, -math.inf, math.inf, 3), "3.14×10⁻⁶", ""),
    ],
)
def test_intervals(interval: Interval, mean: str, between: str) -> None:
    assert format_interval(interval) == (mean, between)
