"""One small quantization and its artifact for all tests of the room; nobody changes either."""

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from bitbrush import Quantization

PROMPTS = ("a red cat", "two blue dogs on the left")


@pytest.fixture(scope="session")
def quantization(_one_tiny_pipe: "StableDiffusionPipeline") -> "Quantization":
    import bitbrush

    recipe = bitbrush.METHODS["pcr"].recipe(
        {
            "rounding": "nearest",
            "relax": "0.5:1@10",
            "exclude": ["*.attn2.to_k"],
            "steps": 3,
            "num_prompts": 2,
            "scheduler": "ddim",
        }
    )
    return bitbrush.quantize(copy.deepcopy(_one_tiny_pipe), recipe, PROMPTS)


@pytest.fixture(scope="session")
def saved(quantization: "Quantization", tmp_path_factory: pytest.TempPathFactory) -> Path:
    import bitbrush

    return bitbrush.save(quantization, tmp_path_factory.mktemp("saved") / "artifact", base_model="someone/tiny")


@pytest.fixture
def artifact(saved: Path, tmp_path: Path) -> Path:
    """A copy for the test to alter."""
    return Path(shutil.copytree(saved, tmp_path / "artifact"))


@pytest.fixture
def brief_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two iterations per block go through all of block reconstruction; sixty take half a minute per denoiser."""
    from bitbrush.rounding import adaround, reconstruction

    monkeypatch.setattr(adaround, "ITERATIONS", 2)
    monkeypatch.setattr(reconstruction, "ITERATIONS", 2)
    monkeypatch.setattr(reconstruction, "CHECK_EVERY", 1)
