"""Tiny text encoders, tokenizers, VAEs and schedulers of the classes that today's pipelines have."""

from typing import Any

import diffusers
import transformers
from diffusers import AutoencoderKL
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tests.artifact.pipelines import FLOW, FLUX_FLOW, scheduler

WIDTH = 32
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
TYPED_TEMPLATE = "{% for message in messages %}{{ message['content'][0]['text'] }}{% endfor %}"
WORDS = """a red cat two blue dogs on the left green tree owl describe image by detailing color shape size texture
quantity text spatial relationships of objects and background im_start im_end system user assistant : , . < > | <| |>"""
SHIFTED = {"scaling_factor": 0.3611, "shift_factor": 0.1159}


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
