"""Pipelines of every family in their real shape: the published configurations, at tiny width and with random weights.

Depth, block types, conditioning and prediction are those of the configuration files that come with the models. Width
is not; and of blocks that follow each other many times, a few are kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from packaging.version import Version
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

import bitbrush
from bitbrush import Quantization, zoo
from bitbrush.bench.images.generation import Generated, generate
from bitbrush.timeline.trajectory import prompt_batches

PROMPTS = ("a red cat", "two blue dogs on the left")

WIDTH = 16
LATENT = 8
PIXELS = 16
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

SD1 = {
    "sample_size": LATENT,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (4, 8, 8, 8),
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": WIDTH,
}
SD1_FLAT = {**SD1, "layers_per_block": 1}
SD2 = {**SD1_FLAT, "attention_head_dim": (1, 2, 4, 4), "use_linear_projection": True, "upcast_attention": True}
SDXL = {
    "sample_size": LATENT,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (4, 8, 8),
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "attention_head_dim": (1, 2, 4),
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": WIDTH + 6 * 8,
    "cross_attention_dim": 2 * WIDTH,
}
TURBO = {**SDXL, "layers_per_block": 1, "transformer_layers_per_block": 1}
REFINER = {
    **SDXL,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (4, 8, 8, 8),
    "attention_head_dim": (1, 2, 4, 4),
    "transformer_layers_per_block": 2,
    "projection_class_embeddings_input_dim": WIDTH + 5 * 8,
    "cross_attention_dim": WIDTH,
}
PIXART = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 12,
    "num_attention_heads": 3,
    "caption_channels": 2 * WIDTH,
    "cross_attention_dim": 36,
    "in_channels": 4,
    "out_channels": 8,
    "norm_elementwise_affine": False,
    "norm_type": "ada_norm_single",
    "num_embeds_ada_norm": 1000,
    "num_layers": 3,
    "patch_size": 2,
    "sample_size": 128,
    "use_additional_conditions": True,
}
SD3 = {
    "attention_head_dim": 12,
    "caption_projection_dim": 24,
    "dual_attention_layers": (0,),
    "in_channels": 4,
    "joint_attention_dim": 3 * WIDTH,
    "num_attention_heads": 2,
    "num_layers": 3,
    "out_channels": 4,
    "patch_size": 2,
    "pooled_projection_dim": 2 * WIDTH,
    "pos_embed_max_size": 12,
    "qk_norm": "rms_norm",
    "sample_size": LATENT,
}
FLUX = {
    "attention_head_dim": 12,
    "axes_dims_rope": (4, 4, 4),
    "guidance_embeds": True,
    "in_channels": 16,
    "joint_attention_dim": 2 * WIDTH,
    "num_attention_heads": 2,
    "num_layers": 2,
    "num_single_layers": 2,
    "patch_size": 1,
    "pooled_projection_dim": 24,
}
FLOW = {"num_train_timesteps": 1000, "shift": 3.0}
FLUX_FLOW = {**FLOW, "use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64}
LATENT_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
PNDM = {**LATENT_DIFFUSION, "skip_prk_steps": True}
DDIM = {**LATENT_DIFFUSION, "clip_sample": False, "set_alpha_to_one": False}
EULER = {**LATENT_DIFFUSION, "timestep_spacing": "leading"}


@dataclass(frozen=True)
class Case:
    """One model: how its pipeline is made, the recipe's keys that suit it, and whether it starts from pictures."""

    make: Callable[[], DiffusionPipeline]
    keys: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[str, ...] = ()

    @property
    def inputs(self) -> dict[str, list[Image.Image]]:
        return {name: [picture(seed, name) for seed in (0, 1)] for name in self.pictures}


def picture(seed: int, name: str = "image") -> Image.Image:
    """Coloured noise; as a mask, the left half."""
    if name == "mask_image":
        return Image.fromarray(np.tile(np.repeat(np.array([[255, 0]], np.uint8), PIXELS // 2, 1), (PIXELS, 1)))
    pixels = np.random.default_rng(seed).integers(0, 256, (PIXELS, PIXELS, 3), np.uint8)
    return Image.fromarray(pixels)


def clip_tokenizer() -> CLIPTokenizer:
    bundled = zoo.model_path("emoji-sd")
    assert bundled is not None
    return CLIPTokenizer.from_pretrained(bundled / "tokenizer")


def clip(
    *, projection: bool = False, activation: str = "quick_gelu", width: int = WIDTH
) -> CLIPTextModel | CLIPTextModelWithProjection:
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=WIDTH,
        hidden_act=activation,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5(width: int) -> dict[str, Any]:
    """A T5 encoder and a tokenizer for the letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>", "▁")] + [(letter, -1.0) for letter in letters]
    config = T5Config(vocab_size=len(vocabulary) + 8, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return {"model": T5EncoderModel(config).eval(), "tokenizer": t5_tokenizer(vocabulary)}


def t5_tokenizer(vocabulary: list[tuple[str, float]]) -> Any:
    """T5's own; transformers 4 makes that of files alone, so there one that does the same."""
    if Version(transformers.__version__) >= Version("5"):
        return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=24)
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=24, model_input_names=inputs, **names)


def vae(**config: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(4, 8),
        norm_num_groups=4,
        sample_size=PIXELS,
        latent_channels=4,
        **config,
    ).eval()


def scheduler(name: str, **config: Any) -> Any:
    return getattr(diffusers, name)(**config)


def stable_diffusion(
    pipeline: str, unet: Mapping[str, Any], sampler: str = "PNDMScheduler", config: Mapping[str, Any] = PNDM
) -> Callable[[], DiffusionPipeline]:
    def make() -> DiffusionPipeline:
        return getattr(diffusers, pipeline)(
            vae=vae(),
            text_encoder=clip(),
            tokenizer=clip_tokenizer(),
            unet=UNet2DConditionModel(**unet).eval(),
            scheduler=scheduler(sampler, **config),
            **NO_CHECKER,
        )

    return make


def sdxl(unet: Mapping[str, Any], sampler: str, config: Mapping[str, Any]) -> Callable[[], DiffusionPipeline]:
    def make() -> DiffusionPipeline:
        return diffusers.StableDiffusionXLPipeline(
            vae=vae(),
            text_encoder=clip(),
            text_encoder_2=clip(projection=True, activation="gelu"),
            tokenizer=clip_tokenizer(),
            tokenizer_2=clip_tokenizer(),
            unet=UNet2DConditionModel(**unet).eval(),
            scheduler=scheduler(sampler, **config),
            add_watermarker=False,
        )

    return make


def refiner() -> DiffusionPipeline:
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=vae(),
        text_encoder=None,
        text_encoder_2=clip(projection=True, activation="gelu"),
        tokenizer=None,
        tokenizer_2=clip_tokenizer(),
        unet=UNet2DConditionModel(**REFINER).eval(),
        scheduler=scheduler("EulerDiscreteScheduler", **EULER),
        requires_aesthetics_score=True,
        add_watermarker=False,
    )


def pixart() -> DiffusionPipeline:
    text = t5(2 * WIDTH)
    return diffusers.PixArtAlphaPipeline(
        tokenizer=text["tokenizer"],
        text_encoder=text["model"],
        vae=vae(),
        transformer=diffusers.PixArtTransformer2DModel(**PIXART).eval(),
        scheduler=scheduler("DPMSolverMultistepScheduler", **LATENT_DIFFUSION),
    )


def sd3() -> DiffusionPipeline:
    text = t5(3 * WIDTH)
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(**SD3).eval(),
        scheduler=scheduler("FlowMatchEulerDiscreteScheduler", **FLOW),
        vae=vae(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(projection=True, activation="gelu"),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=text["model"],
        tokenizer_3=text["tokenizer"],
    )


def flux(flow: Mapping[str, Any], *, guidance: bool) -> Callable[[], DiffusionPipeline]:
    def make() -> DiffusionPipeline:
        text = t5(2 * WIDTH)
        return diffusers.FluxPipeline(
            scheduler=scheduler("FlowMatchEulerDiscreteScheduler", **flow),
            vae=vae(scaling_factor=0.3611, shift_factor=0.1159),
            text_encoder=clip(width=24),
            tokenizer=clip_tokenizer(),
            text_encoder_2=text["model"],
            tokenizer_2=text["tokenizer"],
            transformer=diffusers.FluxTransformer2DModel(**{**FLUX, "guidance_embeds": guidance}).eval(),
        )

    return make


def aura_flow() -> DiffusionPipeline:
    """Of no family that bitbrush knows; its timesteps are shares of the training timesteps."""
    text = t5(2 * WIDTH)
    return diffusers.AuraFlowPipeline(
        tokenizer=text["tokenizer"],
        text_encoder=text["model"],
        vae=vae(),
        transformer=diffusers.AuraFlowTransformer2DModel(
            sample_size=LATENT,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=12,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=24,
            pos_embed_max_size=16,
        ).eval(),
        scheduler=scheduler("FlowMatchEulerDiscreteScheduler", **FLOW),
    )


SQUARE = {"height": PIXELS, "width": PIXELS}
CASES = {
    "sd1": Case(stable_diffusion("StableDiffusionPipeline", SD1)),
    "sd2-v": Case(
        stable_diffusion("StableDiffusionPipeline", SD2, "DDIMScheduler", {**DDIM, "prediction_type": "v_prediction"})
    ),
    "sd-img2img": Case(
        stable_diffusion("StableDiffusionImg2ImgPipeline", SD1_FLAT),
        {"steps": 4, "pipeline_arguments": {"strength": 0.5}},
        ("image",),
    ),
    "sd-inpainting": Case(
        stable_diffusion("StableDiffusionInpaintPipeline", {**SD1_FLAT, "in_channels": 9}),
        {"pipeline_arguments": SQUARE},
        ("image", "mask_image"),
    ),
    "lcm": Case(
        stable_diffusion("LatentConsistencyModelPipeline", {**SD1_FLAT, "time_cond_proj_dim": 8}, "LCMScheduler", DDIM),
        {"guidance_scale": 8.5},
    ),
    "sdxl": Case(sdxl(SDXL, "EulerDiscreteScheduler", EULER), {"guidance_scale": 5.0}),
    "sdxl-refiner": Case(refiner, {"steps": 4, "pipeline_arguments": {"strength": 0.5}}, ("image",)),
    "sdxl-turbo": Case(
        sdxl(TURBO, "EulerAncestralDiscreteScheduler", {**LATENT_DIFFUSION, "timestep_spacing": "trailing"}),
        {"steps": 1, "guidance_scale": 0.0},
    ),
    "pixart": Case(
        pixart,
        {
            "guidance_scale": 4.5,
            "pipeline_arguments": {
                **SQUARE,
                "use_resolution_binning": False,
                "clean_caption": False,
                "max_sequence_length": 20,
            },
        },
    ),
    "sd3": Case(sd3, {"guidance_scale": 7.0, "pipeline_arguments": {"max_sequence_length": 20}}),
    "flux-dev": Case(
        flux(FLUX_FLOW, guidance=True),
        {"guidance_scale": 3.5, "pipeline_arguments": {**SQUARE, "max_sequence_length": 20}},
    ),
    "flux-schnell": Case(
        flux({**FLOW, "shift": 1.0}, guidance=False),
        {"steps": 1, "guidance_scale": 0.0, "pipeline_arguments": {**SQUARE, "max_sequence_length": 20}},
    ),
}
UNKNOWN = Case(aura_flow, {"guidance_scale": 3.5, "pipeline_arguments": {**SQUARE, "max_sequence_length": 20}})


def pipeline(case: Case) -> DiffusionPipeline:
    """Its weights are the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = case.make()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def quantized(case: Case, pipe: DiffusionPipeline, *, generic: bool = False, **keys: Any) -> Quantization:
    """Quantizes by PCR at two steps; the keys of the case, then ``keys``, may change method and steps."""
    arguments = {**case.keys.get("pipeline_arguments", {}), **keys.pop("pipeline_arguments", {})}
    recipe = bitbrush.METHODS[keys.pop("method", "pcr")].recipe(
        {"steps": 2, "num_prompts": 2, **case.keys, **keys, "pipeline_arguments": arguments}
    )
    return bitbrush.quantize(pipe, recipe, PROMPTS, inputs=case.inputs, generic=generic)


def generated(case: Case, pipe: DiffusionPipeline, quantization: Quantization) -> Generated:
    return generate(pipe, prompt_batches(("a green tree",), 1, 1, inputs=case.inputs), quantization.recipe.plan)
