"""Every family in its real shape: quantized, saved, loaded by diffusers, generating; and pipelines of unusual ways."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

import bitbrush
from bitbrush import Quantization
from bitbrush.bench.experiments.bench.qdiffbench import Protocol
from bitbrush.bench.experiments.bench.run import run_bench
from bitbrush.bench.experiments.sensitivity.analysis import step_sensitivities
from bitbrush.bench.experiments.sensitivity.disturbance import QuantizedActivations
from bitbrush.bench.images.image_values import Work
from bitbrush.bench.networks import BUNDLED_CLIP
from bitbrush.bench.networks.chosen import Networks, load_networks
from bitbrush.network.families import family_of
from bitbrush.rounding.blocks import reconstruction_blocks
from bitbrush.runtime.choose import runtime_named
from bitbrush.session.progress import silent
from bitbrush.session.ranks import ranks
from bitbrush.sources.prompts import Domain, PromptSet
from bitbrush.timeline.trajectory import prompt_batches
from tests.artifact.pipelines import CASES, Case, generated, pipeline, quantized

FEW = ("a red cat", "two blue dogs on the left", "a green owl")
FAMILIES = {"pixart": "pixart", "sd3": "sd3", "flux-dev": "flux", "flux-schnell": "flux"}


@pytest.fixture(scope="module")
def networks() -> Networks:
    return load_networks("", clip=BUNDLED_CLIP)


class Made(NamedTuple):
    """A pipeline that was quantized, its denoiser's tensors before, and the folder of the artifact."""

    case: Case
    pipe: DiffusionPipeline
    before: dict[str, Tensor]
    quantization: Quantization
    artifact: Path


def made_of(name: str, rounding: str, folder: Path) -> Made:
    """Quantizes a pipeline and saves both below ``folder``."""
    case = CASES[name]
    pipe = pipeline(case)
    pipe.save_pretrained(folder / "model")
    before = {key: tensor.clone() for key, tensor in getattr(pipe, family_of(pipe).component).state_dict().items()}
    quantization = quantized(case, pipe, rounding=rounding)
    artifact = bitbrush.save(quantization, folder / "artifact", base_model=str(folder / "model"))
    return Made(case, pipe, before, quantization, artifact)


@pytest.fixture(scope="module", params=CASES)
def nearest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A pipeline whose weights were rounded to nearest; the tests leave it as it is."""
    return made_of(request.param, "nearest", tmp_path_factory.mktemp(request.param))


def assert_all_is_quantized_and_kept(made: Made) -> None:
    case, pipe, before, quantization, artifact = made
    family = family_of(pipe)
    denoiser = getattr(pipe, family.component)
    assert all(torch.equal(before[key], tensor) for key, tensor in denoiser.state_dict().items())
    matrices = [name for name, part in denoiser.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    # Everything is quantized: nothing is left out where the recipe excludes nothing.
    assert {layer.name for layer in quantization.outcome.layers} == set(matrices)
    assert {spec.name for spec in quantization.outcome.specs if spec.high_precision} == set(
        family.high_precision_layers(denoiser)
    )
    for layer in quantization.outcome.layers:
        assert len(layer.activations.timesteps) == len(set(quantization.outcome.planned))

    loaded = bitbrush.load(artifact, runtime="reference")
    assert type(loaded) is type(pipe)
    images = generated(case, loaded, quantization)
    expected = generated(case, quantization.pipeline(), quantization)
    assert np.array_equal(images.latents, expected.latents)
    assert not np.array_equal(images.latents, generated(case, pipe, quantization).latents)
    assert images.images.shape == (1, 16, 16, 3)


def test_quantize_save_load_generate(nearest: Made) -> None:
    assert_all_is_quantized_and_kept(nearest)


@pytest.mark.parametrize("name", CASES)
def test_learn_rounding_save_load_generate(name: str, tmp_path: Path) -> None:
    assert_all_is_quantized_and_kept(made_of(name, "learned", tmp_path))


@pytest.mark.parametrize("name", CASES)
def test_blocks_and_edges_are_those_of_the_architecture(name: str) -> None:
    pipe = pipeline(CASES[name])
    family = family_of(pipe)
    assert family.name == FAMILIES.get(name, "unet")
    denoiser = getattr(pipe, family.component)
    layers = [name for name, part in denoiser.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    high_precision_names = family.high_precision_layers(denoiser)
    assert set(high_precision_names) <= set(layers)
    blocks = reconstruction_blocks(denoiser, family, layers)
    within = [layer for block, held in blocks.items() if held != (block,) for layer in held]
    # Outside the blocks are the edges, embeddings and what lies between stages, in every family the smaller part.
    assert len(within) > 0.6 * len(layers)
    assert not set(high_precision_names[::2]) & set(within)


def test_bench(nearest: Made, networks: Networks, tmp_path: Path) -> None:
    model = str(nearest.artifact.parent / "model")
    protocol = Protocol(
        plan=nearest.quantization.recipe.plan,
        sets=(PromptSet("few", Domain.CALIBRATION, FEW),),
        num_images=len(FEW),
        choice=runtime_named("reference"),
        inputs=nearest.case.inputs,
    )
    sources = {"artifact": str(nearest.artifact), "itself": model}
    with ranks() as own:
        document = run_bench(model, sources, protocol, networks, tmp_path / "bench", Work(own, silent))
    artifact, itself = document["candidates"]
    assert artifact["problem"] is None
    figures, same = (one["sets"]["few"]["figures"] for one in (artifact, itself))
    assert figures["latent MSE"]["n"] == len(FEW)
    assert figures["latent MSE"]["mean"] > 0
    assert same["latent MSE"]["mean"] == 0
    assert (tmp_path / "bench" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", CASES)
def test_sensitivity(name: str, networks: Networks) -> None:
    case = CASES[name]
    pipe = pipeline(case)
    plan = bitbrush.METHODS["pcr"].recipe({"steps": 2, **case.keys}).plan
    batches = prompt_batches(FEW[:2], 0, 2, inputs=case.inputs)
    found = step_sensitivities(pipe, batches, plan, QuantizedActivations(pipe, 4), networks.clip)
    assert [one.step for one in found] == list(range(len(found)))
    assert all(one.image_mse.n == 2 for one in found)
    assert any(one.image_mse.mean > 0 for one in found)
