"""What is kept of one cell of an ablation: its figures picture by picture, and how it was made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.images.array_file import damaged, read_arrays, write_arrays

SAMPLES = 3
"""So many pictures of each prompt set are kept for people to see: the first."""


@dataclass(frozen=True)
class SetValues:
    """Of one prompt set, against full precision with the same noise: ``(N,)`` each, PSNR in dB.

    ``by_step`` ``(N, T)``: the latent MSE after every denoiser call. ``clip``: the pictures' own CLIP scores.
    ``pictures`` ``(SAMPLES, H, W, 3)`` uint8.
    """

    psnr: NDArray[np.float64]
    latent_mse: NDArray[np.float64]
    by_step: NDArray[np.float64]
    clip: NDArray[np.float64]
    pictures: NDArray[np.uint8]


@dataclass(frozen=True)
class Made:
    """How a cell's pipeline was made and runs.

    ``weight_bits`` by number of weights and ``activation_bits`` by multiplications: averages without the layers next to
    the latents. ``costs``: seconds and denoiser calls per prompt batch of each phase, rounding counted too where its
    result was taken from another recipe's artifact. ``int8_layers`` and ``fallbacks``: as a Subject has them.
    """

    artifact: str
    weight_bits: float
    activation_bits: float
    denoiser_mib: float
    costs: Mapping[str, Mapping[str, float]]
    runtime: str
    int8_layers: int
    fallbacks: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(cost["seconds"] for cost in self.costs.values())

    @property
    def calls(self) -> int:
        return int(sum(cost["denoiser_calls_per_batch"] for cost in self.costs.values()))


@dataclass(frozen=True)
class Cell:
    """``made`` None: full precision from another seed."""

    sets: Mapping[str, SetValues]
    made: Made | None = None


@dataclass(frozen=True)
class FailedCell:
    """A recipe that could not be carried out or measured, and why."""

    problem: str


def write_cell(cell: Cell | FailedCell, path: Path) -> None:
    """All of it, or nothing."""
    match cell:
        case FailedCell():
            write_arrays({}, {"problem": cell.problem}, path)
        case Cell():
            arrays = {f"{key}|{name}": array for name, one in cell.sets.items() for key, array in vars(one).items()}
            made = None if cell.made is None else vars(cell.made)
            write_arrays(arrays, {"sets": list(cell.sets), "made": made}, path)


def read_cell(path: Path) -> Cell | FailedCell:
    """Raises ValueError for a damaged file."""
    arrays, told = read_arrays(path)
    try:
        if "problem" in told:
            return FailedCell(told["problem"])
        sets = {name: SetValues(**{key: arrays[f"{key}|{name}"] for key in _KEYS}) for name in told["sets"]}
        return Cell(sets, None if told["made"] is None else Made(**told["made"]))
    except (KeyError, TypeError) as error:
        raise damaged(path, error) from error


_KEYS = tuple(SetValues.__dataclass_fields__)
