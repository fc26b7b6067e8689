"""Finding a pipeline's denoiser, or saying what the pipeline holds instead."""

import pytest
from diffusers import DDPMPipeline, DDPMScheduler, StableDiffusionPipeline, UNet2DModel

from bitbrush.network.families import UnknownDenoiserError, denoiser_name, family_of
from bitbrush.network.unet import UNET
from tests.artifact.pipelines import pipeline
from tests.artifact.transformer_pipelines import TRANSFORMERS


def test_stable_diffusion_has_a_unet(tiny_pipe: StableDiffusionPipeline) -> None:
    assert family_of(tiny_pipe) is UNET


def test_another_denoiser_is_refused_by_name() -> None:
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    with pytest.raises(UnknownDenoiserError, match="'unet': 'UNet2DModel'") as caught:
        family_of(DDPMPipeline(unet=unet, scheduler=DDPMScheduler()))
    known = "UNet2DConditionModel, PixArtTransformer2DModel, SD3Transformer2DModel, FluxTransformer2DModel"
    for part in ("DDPMPipeline", known, "'scheduler': 'DDPMScheduler'", "With --generic"):
        assert part in str(caught.value)


def test_two_denoisers_are_refused_by_name() -> None:
    """Wan 2.2 has one for high noise and one for low noise."""
    pipe = pipeline(TRANSFORMERS["wan"])
    pipe.register_modules(transformer_2=pipe.transformer)
    for find in (family_of, denoiser_name):
        with pytest.raises(ValueError, match=r"WanPipeline has 2 denoisers \(transformer, transformer_2\), each for"):
            find(pipe)


def test_no_denoiser_at_all(tiny_pipe: StableDiffusionPipeline) -> None:
    tiny_pipe.unet = None
    with pytest.raises(UnknownDenoiserError, match="'unet': 'NoneType'"):
        family_of(tiny_pipe)


def test_the_denoisers_name_is_known_without_its_family(tiny_pipe: StableDiffusionPipeline) -> None:
    assert denoiser_name(tiny_pipe) == "unet"
    tiny_pipe.unet = None
    with pytest.raises(ValueError, match="has 0 networks that are called with a timestep"):
        denoiser_name(tiny_pipe)
