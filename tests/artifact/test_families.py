"""Every family in its real shape: quantized, saved, loaded by diffusers, generating; and pipelines of unusual ways."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

import bitbrush
from bitbrush import Quantization
from bitbrush.bench.experiments.bench.qdiffbench import Protocol
from bitbrush.bench.experiments.bench.run import run_bench
from bitbrush.bench.experiments.sensitivity.analysis import step_sensitivities
from bitbrush.bench.experiments.sensitivity.disturbance import QuantizedActivations
from bitbrush.bench.images.image_values import Work
from bitbrush.bench.networks import BUNDLED_CLIP
from bitbrush.bench.networks.chosen import Networks, load_networks
from bitbrush.network.families import FAMILIES as NETWORK_FAMILIES
from bitbrush.network.families import family_of
from bitbrush.network.generic import generic_family
from bitbrush.rounding.blocks import reconstruction_blocks
from bitbrush.runtime.choose import runtime_named
from bitbrush.runtime.interface import RuntimeUnavailable
from bitbrush.session.progress import silent
from bitbrush.session.ranks import ranks
from bitbrush.sources.prompts import Domain, PromptSet
from bitbrush.timeline.trajectory import prediction, prompt_batches, start
from tests.artifact.pipelines import CASES, UNKNOWN, Case, generated, pipeline, quantized
from tests.artifact.transformer_pipelines import TRANSFORMERS, small_images
from tests.runtime.loras import random_lora

SIZES = {"SanaPipeline": (32, 32), "WanPipeline": (16, 5 * 16)}
WITHOUT_LORA = ("pixart-sigma", "ernie-image")
"""Their pipelines have no loader of LoRAs."""
FEW = ("a red cat", "two blue dogs on the left", "a green owl")
ALL = {**CASES, **TRANSFORMERS}
FAMILIES = {
    "pixart": "pixart",
    "pixart-sigma": "pixart",
    "flux-dev": "flux",
    "flux-schnell": "flux",
    "flux2-dev": "flux2",
    "flux2-klein": "flux2",
    "z-image-turbo": "z-image",
    **{name: name for name in ("sd3", *TRANSFORMERS) if name in {family.name for family in NETWORK_FAMILIES}},
}


@pytest.fixture(scope="module", autouse=True)
def _small_images() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_images(monkeypatch)
        yield


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


def made_of(name: str, folder: Path, **keys: Any) -> Made:
    """Quantizes a pipeline and saves both below ``folder``."""
    case = ALL[name]
    pipe = pipeline(case)
    pipe.save_pretrained(folder / "model")
    before = {key: tensor.clone() for key, tensor in getattr(pipe, family_of(pipe).component).state_dict().items()}
    quantization = quantized(case, pipe, **keys)
    artifact = bitbrush.save(quantization, folder / "artifact", base_model=str(folder / "model"))
    return Made(case, pipe, before, quantization, artifact)


@pytest.fixture(scope="module", params=ALL)
def nearest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, _small_images: None) -> Made:
    """A pipeline whose weights were rounded to nearest; the tests leave it as it is."""
    return made_of(request.param, tmp_path_factory.mktemp(request.param), rounding="nearest")


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
    assert images.images.shape == (1, *SIZES.get(type(pipe).__name__, (16, 16)), 3)


def test_quantize_save_load_generate(nearest: Made) -> None:
    assert_all_is_quantized_and_kept(nearest)


@pytest.mark.parametrize("nearest", TRANSFORMERS, indirect=True)
def test_integers_generate_what_the_reference_does(nearest: Made) -> None:
    try:
        loaded = bitbrush.load(nearest.artifact, runtime="onednn", dtype="float32")
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    latents = generated(nearest.case, loaded, nearest.quantization).latents
    expected = generated(nearest.case, nearest.quantization.pipeline(), nearest.quantization).latents
    # A value on the edge between two integers may go to the other one.
    assert np.square(latents - expected).mean() < 1e-3 * np.square(expected).mean()


@pytest.mark.parametrize("name", CASES)
def test_learn_rounding_save_load_generate(name: str, tmp_path: Path) -> None:
    assert_all_is_quantized_and_kept(made_of(name, tmp_path))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_best_with_measured_bits(name: str, tmp_path: Path) -> None:
    assert_all_is_quantized_and_kept(made_of(name, tmp_path, method="best", batch_size=1))


def test_generic_reconstructs_blocks_and_measures_bits() -> None:
    pipe = pipeline(UNKNOWN)
    quantization = quantized(UNKNOWN, pipe, generic=True, method="best", weights=4)
    specs = {spec.name: spec for spec in quantization.outcome.specs}
    assert {name for name, spec in specs.items() if spec.high_precision} == {"pos_embed.proj", "proj_out"}
    assert len({spec.weight_bits for spec in specs.values() if not spec.high_precision}) > 1
    names = quantization.family.blocks(pipe.transformer)
    assert names == ("joint_transformer_blocks.0", "single_transformer_blocks.0")


def test_branches_of_as_many_channels_as_the_latents(tmp_path: Path) -> None:
    """A factor's size then equals that of a patch; the layers next to the latents stay the same, without branches."""
    made = made_of("z-image", tmp_path, method="best", activations=4, low_rank=4)
    specs = made.quantization.outcome.specs
    assert any(spec.factor and len({*spec.shape} & {4}) for spec in specs)
    whole = {spec.name for spec in specs if spec.high_precision and not spec.factor}
    assert whole == set(family_of(made.pipe).high_precision_layers(made.pipe.transformer))
    loaded, expected = bitbrush.load(made.artifact, runtime="reference"), made.quantization.pipeline()
    images = [generated(made.case, pipe, made.quantization).latents for pipe in (loaded, expected)]
    assert np.array_equal(*images)


@pytest.mark.parametrize("name", ALL)
def test_blocks_and_edges_are_those_of_the_architecture(name: str) -> None:
    pipe = pipeline(ALL[name])
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


@pytest.mark.parametrize("name", [*TRANSFORMERS, "pixart", "sd3", "flux-dev", "unknown"])
def test_layers_that_pass_latents_on_unchanged_have_high_precision(name: str) -> None:
    """Seen in a call: a layer reads the latents' numbers, in whatever order, or its output is the prediction."""
    case = {**ALL, "unknown": UNKNOWN}[name]
    pipe = pipeline(case)
    family = family_of(pipe) if name in ALL else generic_family(pipe)
    denoiser = getattr(pipe, family.component)
    plan = bitbrush.METHODS["pcr"].recipe({"steps": 2, **case.keys}).plan
    reads, computes = {}, {}
    with ExitStack() as hooks, start(pipe, family.component, prompt_batches(FEW[:1], 0, 1)[0], plan) as trajectory:
        for layer_name, layer in denoiser.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):

                def see(_: nn.Module, args: Any, output: Tensor, layer_name: str = layer_name) -> None:
                    reads[layer_name], computes[layer_name] = args[0], output

                hooks.callback(layer.register_forward_hook(see).remove)
        call = trajectory.request
        assert call is not None
        predicted = prediction(call.run(denoiser))
        latents = next(x for x in tree_iter((call.args, call.kwargs)) if isinstance(x, Tensor) and x.dim() > 1)
    expected = {one for one, x in reads.items() if holds(x, latents)}
    expected |= {one for one, y in computes.items() if holds(y, predicted)}
    assert expected
    assert set(family.high_precision_layers(denoiser)) == expected


def holds(x: Tensor, numbers: Tensor) -> bool:
    """Whether ``x`` has all numbers, or all of them with the other sign, and perhaps more."""
    return any(bool(torch.isin(sign * numbers.float(), x.float()).all()) for sign in (1, -1))


@pytest.mark.parametrize("name", [name for name in TRANSFORMERS if name not in WITHOUT_LORA])
def test_lora(name: str, tmp_path: Path) -> None:
    """A LoRA of attention moves a loaded artifact's latents to where it moves those of full precision."""
    made = made_of(name, tmp_path, rounding="nearest", relax=None, activations=12, weights=8)
    tensors = random_lora(
        made.pipe.transformer, strength=0.5, prefix="transformer", layers=lambda layer: "att" in layer
    )
    save_file({key: x.contiguous() for key, x in tensors.items()}, tmp_path / "style.safetensors")
    loaded = bitbrush.load(made.artifact, runtime="reference")
    plain = generated(made.case, loaded, made.quantization).latents
    before = generated(made.case, made.pipe, made.quantization).latents
    for pipe in (loaded, made.pipe):
        pipe.load_lora_weights(tmp_path, weight_name="style.safetensors")
    moved, expected = (generated(made.case, pipe, made.quantization).latents for pipe in (loaded, made.pipe))
    effect = np.square(expected - before).mean()
    assert effect > 0
    assert np.square((moved - plain) - (expected - before)).mean() < 0.3 * effect


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


@pytest.mark.parametrize("name", [*CASES, "z-image", "wan"])
def test_sensitivity(name: str, networks: Networks) -> None:
    case = ALL[name]
    pipe = pipeline(case)
    plan = bitbrush.METHODS["pcr"].recipe({"steps": 2, **case.keys}).plan
    batches = prompt_batches(FEW[:2], 0, 2, inputs=case.inputs)
    found = step_sensitivities(pipe, batches, plan, QuantizedActivations(pipe, 4), networks.clip)
    assert [one.step for one in found] == list(range(len(found)))
    assert all(one.image_mse.n == 2 for one in found)
    assert any(one.image_mse.mean > 0 for one in found)
