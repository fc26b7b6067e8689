"""Branches of low rank, from the quantization into the artifact and back: integers that every runtime computes."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import bitbrush
from bitbrush import Quantization
from bitbrush.network.layers import HIGH_PRECISION_ACTIVATION_BITS
from bitbrush.network.low_rank import branch_layers, branch_ranks
from bitbrush.runtime.fused_forward import FusedForward
from bitbrush.runtime.interface import RuntimeUnavailable
from bitbrush.runtime.lowered import lowered_of
from bitbrush.sources.identity import model_digest
from tests.artifact.in_integers import RUNTIMES, assert_recalibrates, computed_in_integers, latents, psnr
from tests.artifact.pipelines import CASES, PROMPTS, generated, pipeline, quantized

SMALL = {"rounding": "nearest", "steps": 2, "num_prompts": 2, "weights": 4, "activations": 8, "low_rank": 4}


def made_by(pipe: StableDiffusionPipeline, method: str = "pcr", **keys: object) -> Quantization:
    return bitbrush.quantize(pipe, bitbrush.METHODS[method].recipe({**SMALL, **keys}), PROMPTS)


@pytest.fixture(scope="module")
def branched(_one_tiny_pipe: StableDiffusionPipeline) -> Quantization:
    return made_by(copy.deepcopy(_one_tiny_pipe), weights=8)


@pytest.fixture(scope="module")
def narrow(_one_tiny_pipe: StableDiffusionPipeline) -> Quantization:
    """The same with 4-bit weights."""
    return made_by(copy.deepcopy(_one_tiny_pipe))


@pytest.fixture(scope="module")
def folder(branched: Quantization, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bitbrush.save(branched, tmp_path_factory.mktemp("branched") / "artifact", base_model="someone/tiny")


def test_layers_are_branched_but_those_next_to_the_latents(branched: Quantization) -> None:
    assert branched.original is not None
    whole = {spec.name for spec in branched.outcome.specs if not spec.factor}
    ranks = branch_ranks(branched.source.unet)
    assert len(ranks) > 20
    assert "conv_in" in whole
    assert "conv_in" not in ranks
    assert {f"{name}.residual" for name in ranks} <= whole
    assert not branch_ranks(branched.original.unet)


def test_factors_have_16_bit_inputs_and_the_weights_bits(narrow: Quantization) -> None:
    factors = branch_layers(narrow.source.unet)
    layers = {layer.name: layer for layer in narrow.outcome.layers}
    assert factors <= set(layers)
    for name in factors:
        assert layers[name].weight.qparams.bits == 4
        assert {qparams.bits for qparams in layers[name].schedule.qparams} == {HIGH_PRECISION_ACTIVATION_BITS}
    assert {spec.name for spec in narrow.outcome.specs if spec.factor} == factors
    assert narrow.average_activation_bits == 8  # theirs are not counted
    assert narrow.outcome.product_bits.activations > 8.5  # and here they are


@pytest.mark.parametrize("rounding", ["learned", "nearest"])
def test_no_rounding_changes_the_factors(
    tiny_pipe: StableDiffusionPipeline, narrow: Quantization, rounding: str
) -> None:
    """The residual is what they leave over as they are."""
    made = made_by(tiny_pipe, rounding=rounding)
    ours, theirs = ({layer.name: layer for layer in one.outcome.layers} for one in (made, narrow))
    for name in branch_layers(made.source.unet):
        assert torch.equal(ours[name].weight.w_q, theirs[name].weight.w_q)
        whole = made.source.unet.get_submodule(name).weight
        assert torch.equal(ours[name].weight.dequantize(), whole)
    again = bitbrush.quantize(tiny_pipe, made.recipe, PROMPTS, rounded=made.rounded)
    for one, other in zip(again.outcome.layers, made.outcome.layers, strict=True):
        assert torch.equal(one.weight.w_q, other.weight.w_q)


def test_what_is_saved_is_loaded(branched: Quantization, folder: Path) -> None:
    here = latents(branched.pipeline())
    assert torch.equal(latents(bitbrush.load(folder, runtime="reference")), here)
    own = latents(bitbrush.load(folder))
    assert torch.equal(latents(StableDiffusionPipeline.from_pretrained(folder)), own)
    manifest = bitbrush.read_manifest(folder)
    assert manifest["recipe"]["low_rank"] == 4
    assert manifest["base_model_digest"] == model_digest(branched.original)
    original = branched.original
    assert original is not None
    assert manifest["denoiser"]["full_precision_bytes"] == 4 * sum(p.numel() for p in original.unet.parameters())


def test_it_computes_what_the_full_precision_does(branched: Quantization, folder: Path) -> None:
    full = latents(branched.original)
    assert psnr(latents(branched.source), full) > 100
    assert psnr(latents(bitbrush.load(folder, runtime="reference")), full) > 30


@pytest.mark.parametrize(("runtime", "dtype"), RUNTIMES)
def test_other_runtimes_compute_the_same_in_integers(
    branched: Quantization, folder: Path, runtime: str, dtype: str
) -> None:
    pipe = computed_in_integers(folder, runtime, dtype, latents(branched.original))
    lowered = lowered_of(pipe.unet)
    assert lowered is not None
    assert any(one.layer.endswith(".down") for one in lowered.executions)
    if runtime == "onednn":
        assert all(isinstance(block.forward, FusedForward) for block in pipe.unet.up_blocks[0].resnets)


def test_ranges_are_found_anew_on_its_own_integers(folder: Path, tmp_path: Path) -> None:
    assert_recalibrates(folder, tmp_path)


def test_measured_weight_bits_pay_for_the_branches(tiny_pipe: StableDiffusionPipeline) -> None:
    """With the factors, on average as many bits for each weight of the layers as without."""
    made = made_by(tiny_pipe, weight_allocation="measured")
    counted = [spec for spec in made.outcome.specs if spec.factor or not spec.high_precision]
    bits = sum(torch.Size(spec.shape).numel() * spec.weight_bits for spec in counted)
    weights = sum(torch.Size(spec.shape).numel() for spec in counted if not spec.factor)
    assert 3.9 < bits / weights <= 4


def test_split_skips_are_branched_as_well(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    made = made_by(tiny_pipe, skip_inputs="split")
    assert any(name.endswith(".skip") for name in branch_ranks(made.source.unet))
    saved = bitbrush.save(made, tmp_path / "both", base_model="someone/tiny")
    assert torch.equal(latents(bitbrush.load(saved, runtime="reference")), latents(made.pipeline()))


def test_layers_that_are_treated_apart_have_no_branch(tiny_pipe: StableDiffusionPipeline, narrow: Quantization) -> None:
    plain = branch_ranks(narrow.source.unet)
    apart = made_by(tiny_pipe, exclude=["mid_block.resnets.*"], high_precision=["*.attn1.to_q"], first_token="known")
    ranks = branch_ranks(apart.source.unet)
    left_out = set(plain) - set(ranks)
    apart_by = {"mid_block.resnets": 0, "attn1.to_q": 0, "attn2.to_k": 0, "attn2.to_v": 0}
    for name in left_out:
        (key,) = (key for key in apart_by if key in name)
        apart_by[key] += 1
    assert all(apart_by.values())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"low_rank": 0}, "low_rank is 0; it must be a whole number from 1 to 256"),
        ({"smoothing": "smoothquant"}, "low_rank is 4 and smoothing smoothquant"),
        (
            {"weight_allocation": "measured", "weights": 2, "exclude": ["down_blocks.*", "up_blocks.*"]},
            "branches of rank 4 leave",
        ),
        ({"high_precision": ["*"]}, "no layer that is quantized is large enough for a branch"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_pipe: StableDiffusionPipeline, keys: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made_by(tiny_pipe, **keys)


@pytest.mark.parametrize("keys", [{}, {"method": "dynamic", "relax": "none", "activation_range": "min-max"}], ids=str)
def test_sdxl_asks_its_layers_for_their_widths(keys: dict[str, object], tmp_path: Path) -> None:
    """Its pipelines do, of ``add_embedding.linear_1``, whatever stands there."""
    case = CASES["sdxl-turbo"]
    pipe = pipeline(case)
    made = quantized(case, pipe, rounding="nearest", **({"low_rank": 4} | keys))
    assert branch_ranks(made.source.unet)["add_embedding.linear_1"]
    saved = bitbrush.save(made, tmp_path / "sdxl", base_model="someone/sdxl")
    try:
        ours = bitbrush.load(saved, runtime="onednn", dtype="float32")
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    a, b = (generated(case, one, made).latents for one in (ours, bitbrush.load(saved, runtime="reference")))
    assert psnr(torch.from_numpy(a), torch.from_numpy(b)) > 30


def test_other_families_have_branches_too(tmp_path: Path) -> None:
    case = CASES["pixart"]
    made = quantized(case, pipeline(case), rounding="nearest", low_rank=4)
    ranks = branch_ranks(made.source.transformer)
    assert ranks
    saved = bitbrush.save(made, tmp_path / "dit", base_model="someone/dit")
    assert branch_ranks(bitbrush.load(saved, runtime="reference").transformer) == ranks
