"""Exclusion of code from tracing by ``torch.compile``."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

REASON = "bitbrush chooses scales by the timestep of each denoiser call and brings its own kernels"


def not_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Excludes ``function`` from compilation; with ``fullgraph=True`` torch reports it and the reason.

    A traced timestep would be a constant: each step would compile again, up to torch's limit.
    """
    untraced: Callable[P, R] = torch.compiler.disable(function, reason=REASON)
    return untraced
