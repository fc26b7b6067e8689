"""Split skip inputs, from the quantization into the artifact and back: halves with grids of their own."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

import bitbrush
from bitbrush import Quantization
from bitbrush.artifact.store import read_layers
from bitbrush.network.skip_inputs import split_begins
from bitbrush.network.unet import UNET
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import weight_qparams
from bitbrush.runtime.fused_forward import FusedForward
from bitbrush.runtime.lowered import lowered_of
from bitbrush.sources.identity import model_digest
from tests.artifact.in_integers import RUNTIMES, assert_recalibrates, computed_in_integers, latents, psnr
from tests.artifact.pipelines import PROMPTS

SMALL = {"rounding": "nearest", "steps": 2, "num_prompts": 2, "weights": 8, "step_sizes": "observed"}


def made_by(pipe: StableDiffusionPipeline, method: str, **keys: object) -> Quantization:
    return bitbrush.quantize(pipe, bitbrush.METHODS[method].recipe({**SMALL, **keys}), PROMPTS)


@pytest.fixture(scope="module")
def split(_one_tiny_pipe: StableDiffusionPipeline) -> Quantization:
    return made_by(copy.deepcopy(_one_tiny_pipe), "qdiffusion")


@pytest.fixture(scope="module")
def folder(split: Quantization, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bitbrush.save(split, tmp_path_factory.mktemp("split") / "artifact", base_model="someone/tiny")


@pytest.mark.parametrize("method", ["rtn", "pcr"])
def test_each_half_has_a_grid_of_its_own(tiny_pipe: StableDiffusionPipeline, method: str) -> None:
    """Inputs: what that half was given, at any step or at each. Weights: the extremes of each half's channels."""
    name, begin = "up_blocks.0.resnets.0.conv_shortcut", 16
    assert UNET.skip_readers(tiny_pipe.unet)[name] == begin
    tiny_pipe.unet.conv_in.weight.data *= 8  # one of the skips
    seen: dict[str, list[Tensor]] = {"hidden": [], "skip": []}

    def watch(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["hidden"].append(args[0][:, :begin])
        seen["skip"].append(args[0][:, begin:])

    # What the residual block is given its shortcut reads.
    tiny_pipe.unet.get_submodule("up_blocks.0.resnets.0").register_forward_pre_hook(watch)
    keys = {"skip_inputs": "split", "weight_range": "min-max", "activation_range": "min-max", "relax": "none"}
    layers = {layer.name: layer for layer in made_by(tiny_pipe, method, **keys).outcome.layers}
    assert name not in layers
    weight = tiny_pipe.unet.get_submodule(name).weight.detach()
    for half, own in {"hidden": weight[:, :begin], "skip": weight[:, begin:]}.items():
        layer = layers[f"{name}.{half}"]
        expected = weight_qparams(own, layer.weight.qparams.bits, WeightRange.MIN_MAX)
        assert torch.equal(layer.weight.qparams.scale, expected.scale)
        low, high = min(float(x.min()) for x in seen[half]), max(float(x.max()) for x in seen[half])
        widest = max(qparams.scale for qparams in layer.activations.qparams)
        assert widest == pytest.approx(QParams.from_range(low, high, 8).scale, rel=0.02)
    hidden, skip = layers[f"{name}.hidden"], layers[f"{name}.skip"]
    assert not torch.equal(hidden.weight.qparams.scale, skip.weight.qparams.scale)
    assert hidden.activations != skip.activations


def test_every_reader_of_a_skip_is_split(split: Quantization, tiny_pipe: StableDiffusionPipeline) -> None:
    names = [layer.name for layer in split.outcome.layers]
    readers = UNET.skip_readers(tiny_pipe.unet)
    assert readers
    for reader in readers:
        assert reader not in names
        assert {f"{reader}.hidden", f"{reader}.skip"} <= set(names)
    assert {len(layer.activations.qparams) for layer in split.outcome.layers} == {1}
    assert split.original is not None
    assert model_digest(split.original) == model_digest(tiny_pipe) != model_digest(split.source)


def test_learned_rounding_and_its_reuse(tiny_pipe: StableDiffusionPipeline) -> None:
    learned = made_by(tiny_pipe, "qdiffusion", rounding="learned", weights=4)
    biases = {layer.name: layer.bias for layer in learned.outcome.layers}
    assert all(biases[f"{name}.skip"].any() for name in UNET.skip_readers(tiny_pipe.unet))  # its mean error made up for
    recipe = bitbrush.METHODS["pcr"].recipe({**SMALL, "weights": 4, "skip_inputs": "split"})
    again = bitbrush.quantize(tiny_pipe, recipe, PROMPTS, rounded=learned.rounded)
    for ours, theirs in zip(again.outcome.layers, learned.outcome.layers, strict=True):
        assert torch.equal(ours.weight.w_q, theirs.weight.w_q)
        assert len(ours.activations.qparams) > len(theirs.activations.qparams)


def test_what_is_saved_is_loaded(split: Quantization, folder: Path) -> None:
    here = latents(split.pipeline())
    assert torch.equal(latents(bitbrush.load(folder, runtime="reference")), here)
    own = latents(bitbrush.load(folder))
    assert torch.equal(latents(StableDiffusionPipeline.from_pretrained(folder)), own)
    manifest = bitbrush.read_manifest(folder)
    assert manifest["recipe"]["skip_inputs"] == "split"
    assert manifest["base_model_digest"] == model_digest(split.original)
    assert [layer.name for layer in read_layers(folder)] == [layer.name for layer in split.outcome.layers]


def test_it_computes_what_the_full_precision_does(split: Quantization, folder: Path) -> None:
    full = latents(split.original)
    assert psnr(latents(split.source), full) > 100
    assert psnr(latents(bitbrush.load(folder, runtime="reference")), full) > 30


@pytest.mark.parametrize(("runtime", "dtype"), RUNTIMES)
def test_other_runtimes_compute_the_same_in_integers(
    split: Quantization, folder: Path, runtime: str, dtype: str
) -> None:
    pipe = computed_in_integers(folder, runtime, dtype, latents(split.original))
    lowered = lowered_of(pipe.unet)
    assert lowered is not None
    assert any(one.layer.endswith("conv1.skip") for one in lowered.executions)
    assert split_begins(pipe.unet)
    if runtime == "onednn":
        assert all(isinstance(block.forward, FusedForward) for block in pipe.unet.up_blocks[0].resnets)


def test_ranges_are_found_anew_on_its_own_integers(folder: Path, tmp_path: Path) -> None:
    assert_recalibrates(folder, tmp_path)


def test_a_denoiser_without_skips_is_refused(tiny_pipe: StableDiffusionPipeline) -> None:
    recipe = bitbrush.METHODS["qdiffusion"].recipe(SMALL)
    with pytest.raises(ValueError, match="skip_inputs is split, but no convolution of this UNet2DConditionModel"):
        bitbrush.quantize(tiny_pipe, recipe, PROMPTS, generic=True)
