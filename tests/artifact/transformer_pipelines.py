"""Pipelines of today's transformers in their published configurations, at tiny width and with random weights."""

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers import DiffusionPipeline
from packaging.version import Version

from tests.artifact.pipeline_parts import (
    SHIFTED,
    TYPED_TEMPLATE,
    WIDTH,
    dynamic_flow,
    flow,
    language_config,
    language_model,
    mistral3,
    qwen_vl,
    tokenizer,
    vae8,
    vae_flux2,
    vae_qwen,
)
from tests.artifact.pipelines import PIXART, SQUARE, Case, clip, clip_tokenizer, scheduler, t5, vae

SHORT = {"max_sequence_length": 12}


def z_image() -> DiffusionPipeline:
    return diffusers.ZImagePipeline(
        scheduler=flow(),
        vae=vae(**SHIFTED),
        text_encoder=language_model("Qwen3Model", language_config("Qwen3Config")),
        tokenizer=tokenizer(),
        transformer=diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 6, 6],
            axes_lens=[256, 32, 32],
        ).eval(),
    )


def flux2_transformer(*, guidance: bool) -> Any:
    return diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=24,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    ).eval()


def flux2_dev() -> DiffusionPipeline:
    return diffusers.Flux2Pipeline(
        scheduler=dynamic_flow(),
        vae=vae_flux2(),
        text_encoder=mistral3("Mistral3ForConditionalGeneration"),
        tokenizer=tokenizer(TYPED_TEMPLATE),
        transformer=flux2_transformer(guidance=True),
    )


def flux2_klein() -> DiffusionPipeline:
    return diffusers.Flux2KleinPipeline(
        scheduler=dynamic_flow(),
        vae=vae_flux2(),
        text_encoder=language_model("Qwen3ForCausalLM", language_config("Qwen3Config")),
        tokenizer=tokenizer(),
        transformer=flux2_transformer(guidance=False),
        is_distilled=True,
    )


def qwen_image() -> DiffusionPipeline:
    return diffusers.QwenImagePipeline(
        scheduler=dynamic_flow(),
        vae=vae_qwen(),
        text_encoder=qwen_vl("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VL"),
        tokenizer=tokenizer(),
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ).eval(),
    )


def krea2() -> DiffusionPipeline:
    return diffusers.Krea2Pipeline(
        scheduler=dynamic_flow(),
        vae=vae_qwen(),
        text_encoder=qwen_vl("Qwen3VLModel", "Qwen3VL"),
        tokenizer=tokenizer(),
        transformer=diffusers.Krea2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=48,
            timestep_embed_dim=24,
            text_hidden_dim=WIDTH,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=48,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
        ).eval(),
        text_encoder_select_layers=(0, 1, 2),
    )


def sana() -> DiffusionPipeline:
    sides = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    layers = {"encoder_layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1)}
    scales = {"encoder_qkv_multiscales": ((), (), (5,)), "decoder_qkv_multiscales": ((), (), (5,))}
    kinds = {"encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock")}
    kinds |= {"decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock")}
    return diffusers.SanaPipeline(
        tokenizer=tokenizer(),
        text_encoder=language_model("Gemma2Model", language_config("Gemma2Config")),
        vae=diffusers.AutoencoderDC(
            latent_channels=4, attention_head_dim=4, **sides, **layers, **scales, **kinds
        ).eval(),
        transformer=diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=3,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=WIDTH,
            sample_size=8,
        ).eval(),
        scheduler=flow(),
    )


def lumina2() -> DiffusionPipeline:
    return diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=48,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(8, 8, 8),
            axes_lens=(64, 32, 32),
            cap_feat_dim=WIDTH,
        ).eval(),
        scheduler=flow(),
        vae=vae8(),
        text_encoder=language_model("Gemma2Model", language_config("Gemma2Config")),
        tokenizer=tokenizer(),
    )


def ernie_image() -> DiffusionPipeline:
    pipe = _ernie_image()
    torch.nn.init.normal_(pipe.transformer.final_linear.weight, std=0.1)  # zeros in an untrained network
    return pipe


def _ernie_image() -> DiffusionPipeline:
    return diffusers.ErnieImagePipeline(
        transformer=diffusers.ErnieImageTransformer2DModel(
            hidden_size=48,
            num_attention_heads=3,
            num_layers=2,
            ffn_hidden_size=64,
            in_channels=16,
            out_channels=16,
            text_in_dim=WIDTH,
            rope_axes_dim=(4, 6, 6),
        ).eval(),
        vae=vae_flux2(),
        text_encoder=mistral3("Mistral3Model"),
        tokenizer=tokenizer(),
        scheduler=flow(),
    )


def cogview4() -> DiffusionPipeline:
    return diffusers.CogView4Pipeline(
        tokenizer=tokenizer(),
        text_encoder=language_model("GlmModel", language_config("GlmConfig")),
        vae=vae(**SHIFTED),
        transformer=diffusers.CogView4Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=3,
            text_embed_dim=WIDTH,
            time_embed_dim=24,
            condition_dim=6,
            pos_embed_max_size=16,
            sample_size=8,
            rope_axes_dim=(16, 16),
        ).eval(),
        scheduler=flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, base_image_seq_len=4),
    )


def hidream() -> DiffusionPipeline:
    text = t5(WIDTH)
    return diffusers.HiDreamImagePipeline(
        scheduler=flow(),
        vae=vae(**SHIFTED),
        text_encoder=clip(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(projection=True, activation="gelu"),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=text["model"],
        tokenizer_3=text["tokenizer"],
        text_encoder_4=language_model("LlamaForCausalLM", language_config("LlamaConfig")),
        tokenizer_4=tokenizer(),
        transformer=diffusers.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=3,
            caption_channels=[WIDTH, WIDTH],
            text_emb_dim=32,
            axes_dims_rope=(8, 4, 4),
            max_resolution=(8, 8),
            llama_layers=[0, 1],
        ).eval(),
    )


def pixart_sigma() -> DiffusionPipeline:
    text = t5(32)
    return diffusers.PixArtSigmaPipeline(
        tokenizer=text["tokenizer"],
        text_encoder=text["model"],
        vae=vae(),
        transformer=diffusers.PixArtTransformer2DModel(**{**PIXART, "use_additional_conditions": False}).eval(),
        scheduler=scheduler("DPMSolverMultistepScheduler"),
    )


def wan() -> DiffusionPipeline:
    config = transformers.UMT5Config(vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return diffusers.WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=transformers.UMT5EncoderModel(config).eval(),
        vae=vae_qwen("AutoencoderKLWan"),
        scheduler=scheduler(
            "UniPCMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=WIDTH,
            freq_dim=20,
            ffn_dim=48,
            num_layers=2,
        ).eval(),
    )


def case(make: Callable[[], DiffusionPipeline], guidance: float = 4.0, **arguments: Any) -> Case:
    return Case(make, {"guidance_scale": guidance, "pipeline_arguments": {**SQUARE, **arguments}})


LAYERS = {"text_encoder_out_layers": (0, 1, 2), **SHORT}
PIXART_ARGUMENTS = {"use_resolution_binning": False, "clean_caption": False, **SHORT}
_CASES: Mapping[str, Case] = {
    "z-image": case(z_image, **SHORT),
    "z-image-turbo": case(z_image, 0.0, **SHORT),
    "flux2-dev": case(flux2_dev, **LAYERS),
    "flux2-klein": case(flux2_klein, 1.0, **LAYERS),
    "qwen-image": case(qwen_image, 1.0, negative_prompt="a tree", true_cfg_scale=4.0),
    "krea2": case(krea2, **SHORT),
    "sana": case(sana, height=32, width=32, complex_human_instruction=(), use_resolution_binning=False, **SHORT),
    "lumina2": case(lumina2, system_prompt="", **SHORT),
    "ernie-image": case(ernie_image),
    "cogview4": case(cogview4, **SHORT),
    "hidream": case(hidream, **SHORT),
    "pixart-sigma": case(pixart_sigma, **PIXART_ARGUMENTS),
    "wan": case(wan, num_frames=5, **SHORT),
}

TRANSFORMERS = _CASES if Version(transformers.__version__) >= Version("5") else {}
"""Older versions of transformers and diffusers lack classes of some."""


def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets HiDream make images of 16 pixels a side: its pipeline scales any size to its own."""
    kept = property(lambda _: 8, lambda _, __: None)
    monkeypatch.setattr(diffusers.HiDreamImagePipeline, "default_sample_size", kept, raising=False)
