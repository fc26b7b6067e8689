"""Mean squared error between latents."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.interval import Interval, student_mean
from bitbrush.bench.metrics.pairs import require_same_shape


def latent_mse(reference: NDArray[np.floating[Any]], candidate: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Computes the mean of `(reference - candidate)^2` over channels and positions of each pair, in float64.

    Args:
        reference: Floating-point latents `(N, C, H, W)`, `(N, C, T, H, W)` of videos, or `(N, L, C)` as tokens.
        candidate: Latents of the same shape, paired by index.

    Returns:
        Errors in squared latent units, `(N,)` float64. A pair with NaN or infinite latents has NaN or infinity, which
        `bootstrap_mean` refuses by its index.

    Raises:
        ValueError: Shapes or dtypes do not fit.
    """
    require_same_shape(reference, candidate)
    if reference.ndim not in (3, 4, 5) or 0 in reference.shape[1:]:
        raise ValueError(
            f"reference and candidate have shapes {reference.shape} and {candidate.shape}; latents are (N, C, H, W), "
            "(N, C, T, H, W) of videos, or (N, L, C) as tokens"
        )
    for array in (reference, candidate):
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"latents of shape {array.shape} are {array.dtype}; they must be floats")
    values = np.empty(len(reference), dtype=np.float64)
    for index, (first, second) in enumerate(zip(reference, candidate, strict=True)):
        with np.errstate(invalid="ignore"):  # inf - inf, which the docstring promises as NaN
            values[index] = np.mean((first.astype(np.float64) - second) ** 2)
    return values


def geometric_mean(errors: NDArray[np.float64]) -> Interval | None:
    """Computes the geometric mean of errors `(N,)`; None where an error is 0.

    Its interval is Student's of the logarithms. A few large errors do not dominate it. The interval of the arithmetic
    mean holds the true mean far less often than it says: few images turn into different ones, and a sample may have
    none of them.
    """
    if errors.min() <= 0:
        return None
    logarithms = student_mean(np.log(errors))
    mean, low, high = np.exp([logarithms.mean, logarithms.low, logarithms.high]).tolist()
    return Interval(mean, low, high, logarithms.n)


def geometric_means(errors: NDArray[np.float64]) -> list[Interval]:
    """Computes the geometric mean after each denoiser call of errors `(N, T)`; it is 0 where an error is 0."""
    nothing = Interval(0.0, 0.0, 0.0, len(errors))
    return [geometric_mean(of_call) or nothing for of_call in errors.T]
