"""Code that ``torch.compile`` must not trace."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

REASON = "bitbrush chooses scales by the timestep of each denoiser call and brings its own kernels"


def not_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Runs ``function`` as it is inside of compiled code; with ``fullgraph=True`` torch names it and the reason.

    Traced, a timestep would be a constant: each step would compile anew, up to torch's limit.
    """
    untraced: Callable[P, R] = torch.compiler.disable(function, reason=REASON)
    return untraced
