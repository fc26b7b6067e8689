"""Measurements of one recipe at one bit setting: values per image, and how its pipeline was made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.experiments import cell_store
from bitbrush.bench.experiments.cell_store import FailedCell, StoredCell, damaged

SAMPLES = 3
"""Number of images of each prompt set that a cell stores for the page: the first ones."""


@dataclass(frozen=True)
class SetValues:
    """Values of one prompt set against full precision with the same noise.

    Args:
        psnr: PSNR in dB, (N,).
        latent_mse: Latent MSE after the last denoiser call, (N,).
        by_step: Latent MSE after every denoiser call, (N, T).
        clip: CLIP scores of the images themselves, (N,).
        images: First images, (SAMPLES, H, W, 3) uint8.
    """

    psnr: NDArray[np.float64]
    latent_mse: NDArray[np.float64]
    by_step: NDArray[np.float64]
    clip: NDArray[np.float64]
    images: NDArray[np.uint8]


@dataclass(frozen=True)
class Provenance:
    """How a cell's pipeline was made and runs.

    Args:
        artifact: Digest of the artifact.
        weight_bits: Average by number of weights, without the layers next to the latents.
        activation_bits: Average by multiplications, without the layers next to the latents.
        denoiser_mib: Size of the denoiser's weight files.
        costs: Seconds and denoiser calls per prompt batch of each phase. Rounding counts in full where its result came
            from another recipe's artifact.
        runtime: Executor of the layers.
        int8_layers: Number of layers computed in integers.
        fallbacks: Names of the other layers, by how they are computed instead.
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
        """Seconds of all phases."""
        return sum(cost["seconds"] for cost in self.costs.values())

    @property
    def calls(self) -> int:
        """Denoiser calls per prompt batch of all phases."""
        return int(sum(cost["denoiser_calls_per_batch"] for cost in self.costs.values()))


@dataclass(frozen=True)
class Cell:
    """Values by prompt set; ``provenance`` is None for full precision from another seed."""

    sets: Mapping[str, SetValues]
    provenance: Provenance | None = None


def write_cell(cell: Cell | FailedCell, path: Path) -> None:
    """Writes a cell completely or not at all."""
    if isinstance(cell, Cell):
        groups = {name: vars(values) for name, values in cell.sets.items()}
        provenance = None if cell.provenance is None else vars(cell.provenance)
        cell_store.write_cell(StoredCell(groups, {"sets": list(cell.sets), "provenance": provenance}), path)
    else:
        cell_store.write_cell(cell, path)


def read_cell(path: Path) -> Cell | FailedCell:
    """Reads a cell.

    Raises:
        ValueError: The file is damaged.
    """
    stored = cell_store.read_cell(path)
    if isinstance(stored, FailedCell):
        return stored
    try:
        sets = {name: SetValues(**stored.groups[name]) for name in stored.facts["sets"]}
        provenance = stored.facts["provenance"]
        return Cell(sets, None if provenance is None else Provenance(**provenance))
    except (KeyError, TypeError) as error:
        raise damaged(path, error) from error
