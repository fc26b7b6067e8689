"""One thread per process, set before torch is imported: workers share the cores and sums add up in one order."""

import gc
import os

gc.disable()  # until the tests are collected: imports make half a million objects and little garbage
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels for cards are emulated; 0 runs their tests on the card
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would download must fail, not wait

import copy
import random
import shutil
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from bitbrush import Quantization

from bitbrush.calibration import sensitivity
from bitbrush.rounding import adaround, reconstruction

torch.set_num_threads(1)
# Two iterations per block go through all of learned rounding; sixty take half a minute per denoiser.
# The tests of rounding itself restore the package's number (tests/rounding/conftest.py).
adaround.ITERATIONS = reconstruction.ITERATIONS = 2
reconstruction.CHECK_EVERY = 1
# Two segments of steps instead of ten go through all of the sensitivities' measurement.
_TEN_SEGMENTS = sensitivity.BOUNDS
sensitivity.BOUNDS = (0.0, 0.5, 1.0)
# The same examples every time, however slow or busy the machine is.
settings.register_profile("tests", max_examples=20, deadline=None, derandomize=True, database=None)
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in a random order, a file at a time")


@pytest.hookimpl(tryfirst=True)
def pytest_collectstart() -> None:
    """Seeds what a module draws while it is imported, whichever modules were collected before."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seeds what a test draws without a generator, whichever tests ran before."""
    torch.manual_seed(0)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle files, and the tests within each, by the seed given: every xdist worker arrives at the same order."""
    seed = config.getoption("--shuffle")
    if seed is None:
        return
    order = random.Random(seed)
    files = [list(group) for _, group in groupby(items, key=lambda item: item.path)]
    order.shuffle(files)
    for file in files:
        order.shuffle(file)
    items[:] = [item for file in files for item in file]


def pytest_collection_finish() -> None:
    """Keeps what imports made from being looked through by each of the garbage collector's full passes."""
    gc.enable()
    gc.freeze()


def pytest_report_header(config: pytest.Config) -> str:
    seed = config.getoption("--shuffle")
    return "order: as collected" if seed is None else f"order: shuffled, seed {seed}"


@pytest.fixture
def _ten_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores the package's segments of steps."""
    monkeypatch.setattr(sensitivity, "BOUNDS", _TEN_SEGMENTS)


@pytest.fixture(scope="session")
def _one_tiny_pipe() -> "StableDiffusionPipeline":
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from bitbrush import zoo

    bundled = zoo.model_path("emoji-sd")
    assert bundled is not None
    tokenizer = CLIPTokenizer.from_pretrained(bundled / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=16,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            block_out_channels=(4, 8),
            norm_num_groups=4,
            sample_size=16,
        )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=PNDMScheduler.from_pretrained(bundled / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def tiny_pipe(_one_tiny_pipe: "StableDiffusionPipeline") -> "StableDiffusionPipeline":
    """A StableDiffusionPipeline of seeded random weights, 16 x 16 pixels and milliseconds per step; the test's own."""
    return copy.deepcopy(_one_tiny_pipe)


@pytest.fixture(scope="session")
def quantization(_one_tiny_pipe: "StableDiffusionPipeline") -> "Quantization":
    import bitbrush
    from tests.artifact.pipelines import PROMPTS

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
