"""Pipelines of today's transformers in their published configurations, at tiny width and with random weights.

Text encoders are of the published classes. Their tokenizer knows the words of the test's prompts and templates.
"""

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers import AutoencoderKL, DiffusionPipeline
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tests.artifact.pipelines import FLOW, FLUX_FLOW, PIXART, SQUARE, Case, clip, clip_tokenizer, scheduler, t5, vae

WIDTH = 32
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
TYPED_TEMPLATE = "{% for message in messages %}{{ message['content'][0]['text'] }}{% endfor %}"
WORDS = """a red cat two blue dogs on the left green tree owl describe image by detailing color shape size texture
quantity text spatial relationships of objects and background im_start im_end system user assistant : , . < > | <| |>"""
SHIFTED = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
SHORT = {"max_sequence_length": 12}


def tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words; any other word is unknown."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(WORDS.split())]
    words_of = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    words_of.pre_tokenizer = Whitespace()
    words_of.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    inputs = ["input_ids", "attention_mask"]
    made = PreTrainedTokenizerFast(tokenizer_object=words_of, model_max_length=128, model_input_names=inputs, **names)
    made.chat_template = template
    return made


def language_config(name: str, **keys: Any) -> Any:
    """A configuration of two layers for a text model of transformers."""
    return getattr(transformers, name)(
        vocab_size=128,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **keys,
    )


def language_model(name: str, config: Any) -> Any:
    return getattr(transformers, name)(config).eval()


def mistral3(name: str) -> Any:
    text = language_config("MistralConfig")
    sees = transformers.PixtralVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    return language_model(name, transformers.Mistral3Config(vision_config=sees, text_config=text))


def qwen_vl(name: str, config: str) -> Any:
    rotary = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    text = language_config(f"{config}TextConfig", rope_parameters=rotary)
    sees = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": WIDTH}
    sees |= {"fullatt_block_indexes": [0]} if "2_5" in config else {"deepstack_visual_indexes": [0]}
    both = getattr(transformers, f"{config}Config")(text_config=text.to_dict(), vision_config=sees)
    return language_model(name, both)


def vae_flux2() -> Any:
    return diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    ).eval()


def vae_qwen(kind: str = "AutoencoderKLQwenImage") -> Any:
    """The causal video VAE of Wan and Qwen-Image; it divides sides by 8."""
    statistics = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    return getattr(diffusers, kind)(base_dim=4, z_dim=4, num_res_blocks=1, **statistics).eval()


def flow(**keys: Any) -> Any:
    return scheduler("FlowMatchEulerDiscreteScheduler", **{**FLOW, **keys})


def dynamic_flow() -> Any:
    return scheduler("FlowMatchEulerDiscreteScheduler", **FLUX_FLOW, base_shift=0.5, max_shift=1.15)


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


def vae8() -> AutoencoderKL:
    """A VAE that divides sides by 8, which Lumina's pipeline takes for granted."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        **SHIFTED,
    ).eval()


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
TRANSFORMERS: Mapping[str, Case] = {
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


def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets HiDream make images of 16 pixels a side: its pipeline scales any size to its own."""
    kept = property(lambda _: 8, lambda _, __: None)
    monkeypatch.setattr(diffusers.HiDreamImagePipeline, "default_sample_size", kept, raising=False)
