"""Counts of input values beyond the calibrated ranges, by layer and timestep."""

import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from bitbrush.network.families import denoiser_name
from bitbrush.network.first_token import without_known_token
from bitbrush.numerics.affine import QParams, reciprocal
from bitbrush.runtime.faces import innermost
from bitbrush.runtime.lowered import lowered_of
from bitbrush.timeline.schedule import ActivationSchedule
from bitbrush.timeline.tracker import TRACKER

MANY = 0.01
"""Share of a layer's inputs at a step from which clipping is reported as a warning."""
_ROWS = 12


class Clipped:
    """Shares of inputs that were clipped, by layer and timestep; ``str()`` gives a table of the largest.

    Layers with ranges computed at run time clip nothing and are not listed.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, float], list[int]] = defaultdict(lambda: [0, 0])
        self._lock = threading.Lock()

    def add(self, layer: str, timestep: float, *, clipped: int, of: int) -> None:
        """Adds the counts of one call of a layer."""
        with self._lock:
            counts = self._counts[layer, timestep]
            counts[0] += clipped
            counts[1] += of

    def shares(self) -> dict[str, dict[float, float]]:
        """Returns the share of clipped values by layer and timestep, the noisiest first."""
        found: dict[str, dict[float, float]] = {}
        for (layer, timestep), (clipped, of) in sorted(self._counts.items(), key=lambda item: -item[0][1]):
            found.setdefault(layer, {})[timestep] = clipped / of
        return found

    def many(self) -> dict[str, tuple[float, float]]:
        """Returns timestep and share where a layer clips most, for layers that clip more than MANY there."""
        peaks = {layer: max(steps.items(), key=lambda item: item[1]) for layer, steps in self.shares().items()}
        chosen = [(layer, peak) for layer, peak in peaks.items() if peak[1] > MANY]
        return dict(sorted(chosen, key=lambda item: -item[1][1]))

    def __str__(self) -> str:
        shares = self.shares()
        rows = sorted(
            ((share, layer, timestep) for layer, steps in shares.items() for timestep, share in steps.items()),
            reverse=True,
        )
        lines = [f"clipped values of {len(shares)} layers, the largest {min(_ROWS, len(rows))} of {len(rows)} shares"]
        lines += [f"{share:8.3%}  timestep {timestep:6g}  {layer}" for share, layer, timestep in rows[:_ROWS]]
        return "\n".join(lines)


@contextmanager
def watch(pipe: Any) -> Iterator[Clipped]:
    """Counts the input values that a quantized pipeline clips while entered.

    ``with bitbrush.watch(pipe) as clipped: pipe("a red apple")`` and then ``print(clipped)``. Ranges were calibrated
    without adapters, and for one guidance scale and size; values beyond them are clipped. On ``onednn`` and ``cuda``
    blocks are computed module by module meanwhile, which takes longer and may round differently.

    Args:
        pipe: Loaded artifact, or a pipeline around its denoiser.

    Yields:
        The counts, which grow with each call of the pipeline.

    Raises:
        ValueError: The denoiser is not quantized.

    Warns:
        UserWarning: A layer clipped more than one value in a hundred at some step; once, at the end.
    """
    denoiser: nn.Module = getattr(pipe, denoiser_name(pipe))
    lowered = lowered_of(denoiser)
    if lowered is None:
        raise ValueError(f"{type(denoiser).__name__} is not quantized; watch a pipeline of bitbrush.load(DIRECTORY)")
    clipped, layers = Clipped(), innermost(denoiser)
    with ExitStack() as hooks:
        for name, activations in lowered.activations.items():
            if isinstance(activations, ActivationSchedule):
                hooks.callback(layers[name].register_forward_pre_hook(_Counter(name, activations, clipped)).remove)
        yield clipped
    _warn(clipped)


class _Counter:
    """Forward pre-hook that counts the clipped values of a layer."""

    def __init__(self, name: str, schedule: ActivationSchedule, clipped: Clipped) -> None:
        self._name, self._schedule, self._clipped = name, schedule, clipped

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        x = without_known_token(layer, args[0])
        timestep = TRACKER.timestep
        self._clipped.add(self._name, timestep, clipped=clipped_values(x, self._schedule.at(timestep)), of=x.numel())


def clipped_values(x: Tensor, qparams: QParams) -> int:
    """Counts the values whose integers lie beyond 0 and ``2^bits - 1``."""
    integers = (x.float() * reciprocal(qparams)).round_().add_(qparams.zero_point)
    return int(((integers < 0) | (integers > qparams.qmax)).sum())


def _warn(clipped: Clipped) -> None:
    many = clipped.many()
    if many:
        layer, (timestep, share) = next(iter(many.items()))
        warnings.warn(
            f"{len(many)} of {len(clipped.shares())} layers clip more than {MANY:.0%} of their inputs at a step, "
            f"{layer} {share:.1%} at timestep {timestep:g}: their ranges were calibrated for other inputs. Quantize "
            "with what was added (--lora, the same size and guidance), or by a method with ranges found at run time "
            "(--method dynamic)",
            stacklevel=3,
        )
