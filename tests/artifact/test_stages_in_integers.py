"""Every stage that a recipe can switch on, through the artifact: its layers run in integers, or are named.

Each layer of the oneDNN runtime is given what the reference's is given and must answer the same.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

import bitbrush
from bitbrush.artifact.store import read_layers
from bitbrush.runtime.interface import RuntimeUnavailable
from bitbrush.runtime.lowered import lowered_of
from bitbrush.timeline.tracker import TRACKER
from tests.artifact.pipelines import PROMPTS

SMALL = {"rounding": "nearest", "steps": 2, "num_prompts": 2, "weights": 4, "activations": 6}
STAGES: dict[str, dict[str, Any]] = {
    "none": {},
    "measured bits": {"relax": "auto:6.4", "weight_allocation": "measured"},
    "branches": {"low_rank": 4},
    "learned step sizes": {"method": "qdiffusion", "relax": "none", "step_sizes": "learned"},
    "split skips": {"skip_inputs": "split"},
    "equivalent scaling": {"smoothing": "smoothquant"},
    "start token": {"first_token": "known"},
    "fine layers": {"high_precision": ["time_embedding.*", "*.time_emb_proj"]},
    "ranges at run time": {"method": "dynamic", "relax": "none", "activation_range": "min-max"},
}

TIMESTEP = 500.0


@pytest.fixture(scope="module", params=STAGES)
def made(
    request: pytest.FixtureRequest, _one_tiny_pipe: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    stage: str = request.param
    recipe = bitbrush.METHODS["pcr"].recipe({**SMALL, **STAGES[stage]})
    quantization = bitbrush.quantize(_one_tiny_pipe, recipe, PROMPTS)
    folder = tmp_path_factory.mktemp("stage") / "artifact"
    return stage, bitbrush.save(quantization, folder, base_model="someone/tiny")


def denoiser(folder: Path, runtime: str) -> Any:
    try:
        return bitbrush.load(folder, runtime=runtime, dtype="float32").unet
    except RuntimeUnavailable as error:
        pytest.skip(str(error))


def answer(unet: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 5, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        y: Tensor = unet(latents, TIMESTEP, text).sample
    return y


def test_layers_are_in_integers_or_named(made: tuple[str, Path]) -> None:
    _, folder = made
    lowered = lowered_of(denoiser(folder, "onednn"))
    assert lowered is not None
    assert {one.layer for one in lowered.executions} == {layer.name for layer in read_layers(folder)}
    assert not [one for one in lowered.executions if one.fallback]


def test_every_layer_answers_as_the_reference_does(made: tuple[str, Path]) -> None:
    _, folder = made
    reference, ours = denoiser(folder, "reference"), denoiser(folder, "onednn")
    names = [layer.name for layer in read_layers(folder)]
    given: dict[str, tuple[Tensor, Tensor]] = {}
    for name in names:

        def keep(_: nn.Module, args: tuple[Tensor, ...], y: Tensor, own: str = name) -> None:
            given[own] = args[0].clone(), y.clone()

        reference.get_submodule(name).register_forward_hook(keep)
    expected, found = answer(reference), answer(ours)
    with torch.no_grad(), TRACKER.at(TIMESTEP):
        for name in names:
            x, y = given[name]
            layer = ours.get_submodule(name)
            # The last layer's own forward takes in the norm before it.
            found_y = type(layer).forward(layer, x) if "forward" in layer.__dict__ else layer(x)
            torch.testing.assert_close(found_y, y, rtol=1e-4, atol=1e-4 * float(y.abs().max()))
    assert float((found - expected).square().mean() / expected.square().mean()) < 0.05
