"""Number formats of pages and tables: no more digits than the interval supports, powers of ten instead of `e-05`."""

import math

from bitbrush.bench.metrics.interval import Interval

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SMALL, _LARGE = 1e-4, 1e6  # outside, a number is written with a power of ten


def format_number(value: float, *, digits: int = 6, small: float = _SMALL) -> str:
    """Formats `value` with up to `digits` significant digits and a true minus sign: `35.2`, `0.004`, `3×10⁻⁵`, `10⁻⁶`.

    Args:
        value: Number.
        digits: Most significant digits.
        small: Limit below which numbers get a power of ten; an axis whose ticks should look alike raises it.
    """
    if value == 0 or small <= abs(value) < _LARGE:
        return f"{value + 0.0:.{digits}g}".replace("-", "−")  # + 0.0 turns -0.0 into 0.0
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return _with_exponent(f"{float(mantissa):g}", int(exponent))


def format_interval(interval: Interval) -> tuple[str, str]:
    """Formats mean and range with the same decimals and power of ten: `("35.21", "34.80 to 35.62")`.

    Decimals end at the second digit of the interval's half width; further ones would be noise. An interval of no width
    gets three significant digits. The range is empty for a single value and for an infinite interval, which the median
    of few values has.
    """
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return format_number(interval.mean, digits=3), ""
    size = max(abs(interval.mean), abs(interval.low), abs(interval.high))
    exponent = math.floor(math.log10(size)) if size and not _SMALL <= size < _LARGE else 0
    unit = 10.0**exponent
    resolution = (interval.high - interval.low) / 2 / unit or size / unit / 10 or 1.0
    decimals = min(6, max(0, 1 - math.floor(math.log10(resolution))))
    mean, low, high = (
        f"{value / unit + 0.0:.{decimals}f}".replace("-", "−") for value in (interval.mean, interval.low, interval.high)
    )
    return _with_exponent(mean, exponent), "" if interval.n < 2 else f"{low} to {_with_exponent(high, exponent)}"


def _with_exponent(mantissa: str, exponent: int) -> str:
    text = mantissa.replace("-", "−")
    if not exponent:
        return text
    power = f"10{str(exponent).translate(_SUPERSCRIPTS)}"
    return power if text == "1" else f"{text}×{power}"
