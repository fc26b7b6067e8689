"""Half precision, other defaults and device maps: a denoiser's numbers stay float32 and answers are of any type."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

import bitbrush
from bitbrush import Quantization
from bitbrush.runtime.interface import RuntimeUnavailable
from bitbrush.runtime.onednn import probe

TYPES = (torch.float16, torch.bfloat16, torch.float64)


def calls(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float32).to(dtype),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 7, 16, generator=generator, dtype=torch.float32).to(dtype),
    }


@torch.no_grad()
def answer(denoiser: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    result: Tensor = denoiser(**calls(dtype)).sample
    return result


def picture(pipe: StableDiffusionPipeline, **call: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "generator": generator, "output_type": "pt", **call}
    result: Tensor = pipe("a red cat", **options).images
    return result


@pytest.fixture(params=["reference", "onednn", "onednn low"])
def load(request: pytest.FixtureRequest, saved: Path) -> Callable[[], StableDiffusionPipeline]:
    """Loads one and the same artifact by one of the runtimes."""
    runtime, *low = request.param.split()
    if runtime == "onednn":
        try:
            probe.require_exact_products()
        except RuntimeUnavailable as error:
            pytest.skip(str(error))
    return lambda: bitbrush.load(saved, runtime=runtime, memory="low" if low else "expanded")


@pytest.mark.parametrize("dtype", TYPES)
def test_a_denoiser_answers_in_its_callers_type(
    load: Callable[[], StableDiffusionPipeline], dtype: torch.dtype
) -> None:
    denoiser = load().unet
    rounded = {name: x.to(dtype).float() if x.is_floating_point() else x for name, x in calls().items()}
    expected: Tensor = denoiser(**rounded).sample
    given = answer(denoiser, dtype)
    assert given.dtype == dtype
    assert torch.equal(given, expected.to(dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_cast_pipeline_runs_and_its_denoiser_computes_as_before(
    load: Callable[[], StableDiffusionPipeline], dtype: torch.dtype
) -> None:
    pipe = load()
    before = answer(pipe.unet)
    assert pipe.to(dtype) is pipe
    assert pipe.vae.dtype == pipe.text_encoder.dtype == dtype
    assert torch.equal(answer(pipe.unet), before)
    image = picture(pipe)
    assert image.isfinite().all()
    assert image.dtype == dtype
    pipe.to(torch.float32)
    assert torch.equal(answer(pipe.unet), before)
    assert picture(pipe).dtype == torch.float32


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float"])
def test_no_cast_changes_a_denoiser(load: Callable[[], StableDiffusionPipeline], cast: str) -> None:
    denoiser = load().unet
    before, types = answer(denoiser), [parameter.dtype for parameter in denoiser.parameters()]
    assert getattr(denoiser, cast)() is denoiser
    getattr(nn.ModuleList([denoiser]), cast)()  # as a part of another module, too
    assert [parameter.dtype for parameter in denoiser.parameters()] == types
    assert torch.equal(answer(denoiser), before)


def test_memory_for_other_values_can_be_allocated(load: Callable[[], StableDiffusionPipeline]) -> None:
    """Frameworks do so before they load weights; kernels' layouts stay as they are."""
    denoiser = load().unet
    shapes = [parameter.shape for parameter in denoiser.parameters()]
    assert [parameter.shape for parameter in denoiser.to_empty(device="cpu").parameters()] == shapes


def test_channels_last_is_taken(load: Callable[[], StableDiffusionPipeline]) -> None:
    denoiser = load().unet
    before = answer(denoiser)
    assert torch.allclose(answer(denoiser.to(memory_format=torch.channels_last)), before, atol=1e-1)


def test_autocast_does_not_reach_the_integers(load: Callable[[], StableDiffusionPipeline]) -> None:
    denoiser = load().unet
    before = answer(denoiser)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(answer(denoiser), before)


def test_a_pipeline_by_diffusers_can_be_cast(saved: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(saved)
    before = answer(pipe.unet)
    pipe.to(torch.bfloat16)
    assert torch.equal(answer(pipe.unet), before)
    assert picture(pipe).dtype == torch.bfloat16


def test_a_denoiser_by_diffusers_fits_a_pipeline_in_half_precision(
    saved: Path, tiny_pipe: StableDiffusionPipeline
) -> None:
    half = tiny_pipe.to(torch.float16)
    half.unet = UNet2DConditionModel.from_pretrained(saved, subfolder="unet", torch_dtype=torch.float16)
    assert picture(half).dtype == torch.float16


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", TYPES)
def test_another_default_type_changes_nothing(load: Callable[[], StableDiffusionPipeline], dtype: torch.dtype) -> None:
    expected = answer(load().unet)
    with default_dtype(dtype):
        denoiser = load().unet
        assert torch.get_default_dtype() == dtype
        assert torch.equal(answer(denoiser), expected)
    assert torch.equal(answer(denoiser), expected)


def test_another_default_device_changes_nothing(load: Callable[[], StableDiffusionPipeline]) -> None:
    """The device meta, on which nothing is computed: whoever sets another one puts the pipeline there by itself."""
    expected, given = answer(load().unet), calls()
    with torch.device("meta"):
        denoiser = load().unet
        with torch.no_grad():
            assert torch.equal(denoiser(**given).sample, expected)
        assert torch.empty(0).is_meta


@pytest.mark.parametrize("dtype", TYPES)
def test_another_default_type_quantizes_alike(
    tiny_pipe: StableDiffusionPipeline, quantization: Quantization, dtype: torch.dtype
) -> None:
    with default_dtype(dtype):
        found = bitbrush.quantize(tiny_pipe, quantization.recipe, ["a red cat", "two blue dogs on the left"])
    for own, expected in zip(found.outcome.layers, quantization.outcome.layers, strict=True):
        assert own.activations == expected.activations
        assert torch.equal(own.weight.w_q, expected.weight.w_q)


def test_torchs_own_types_are_taken_as_dtype(saved: Path) -> None:
    try:
        probe.require_exact_products()
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    own, named = (bitbrush.load(saved, runtime="onednn", dtype=dtype).unet for dtype in (torch.bfloat16, "bfloat16"))
    assert torch.equal(answer(own), answer(named))
    with pytest.raises(ValueError, match="dtype is 'float16'; choose from float32, bfloat16"):
        bitbrush.load(saved, dtype=torch.float16)


def test_networks_that_are_not_quantized_in_bfloat16(load: Callable[[], StableDiffusionPipeline], saved: Path) -> None:
    """Close to the images in float32, with the scheduler's arithmetic in float32 as ever."""
    own = load()
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        with pytest.raises(RuntimeUnavailable, match="unquantized is bfloat16"):
            bitbrush.load(saved, unquantized="bfloat16")
        return
    pipe = bitbrush.load(saved, runtime="reference", unquantized="bfloat16")
    assert pipe.vae.decoder.conv_in.weight.dtype == pipe.text_encoder.get_input_embeddings().weight.dtype
    assert pipe.vae.decoder.conv_in.weight.dtype == torch.bfloat16
    assert pipe.vae.dtype == pipe.text_encoder.dtype == torch.float32
    images, expected = picture(pipe), picture(bitbrush.load(saved, runtime="reference"))
    assert 0 < (images - expected).square().mean().sqrt() < 0.02
    assert {parameter.dtype for parameter in own.vae.parameters()} == {torch.float32}


def test_an_unknown_type_of_these_networks_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match="unquantized is 'float16'; choose from float32, bfloat16"):
        bitbrush.load(saved, unquantized="float16")
