"""A pipeline's tensors under the names of the original Stable Diffusion code, as in its single-file checkpoints."""

import re
from collections.abc import Iterator

from diffusers import StableDiffusionPipeline
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_layout(pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    """Of a pipeline whose U-Net and autoencoder have two levels with one ResNet block each (two when decoding)."""
    text = {f"cond_stage_model.transformer.text_model.{key}": t for key, t in _text(pipe).items()}
    unet = {f"model.diffusion_model.{_unet(key)}": tensor for key, tensor in pipe.unet.state_dict().items()}
    vae = {f"first_stage_model.{name}": tensor for name, tensor in _vae(pipe.vae.state_dict())}
    return {key: tensor.contiguous() for key, tensor in {**text, **unet, **vae}.items()}


def _text(pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    return {key.removeprefix("text_model."): tensor for key, tensor in pipe.text_encoder.state_dict().items()}


def _unet(key: str) -> str:
    """input_blocks are counted through: conv_in, then a block or a downsampler each; output_blocks likewise."""
    key = re.sub(r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}", key)
    key = re.sub(r"^conv_in", "input_blocks.0.0", key)
    key = re.sub(r"^conv_norm_out", "out.0", key)
    key = re.sub(r"^conv_out", "out.2", key)
    key = re.sub(r"^down_blocks\.(\d)\.resnets\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.0", key)
    key = re.sub(r"^down_blocks\.(\d)\.attentions\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.1", key)
    key = re.sub(r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{2 + 2 * int(m[1])}.0.op", key)
    key = re.sub(r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}", key)
    key = re.sub(r"^mid_block\.attentions\.0", "middle_block.1", key)
    key = re.sub(r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0", key)
    key = re.sub(r"^up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.1", key)
    # The upsampler follows the level's last block, after its attention if that has one: the first level's has.
    key = re.sub(r"^up_blocks\.(\d)\.upsamplers\.0\.conv", lambda m: f"output_blocks.{2 * int(m[1]) + 1}.2.conv", key)
    head, _, own = key.rpartition(".")
    parent, _, layer = head.rpartition(".")
    return f"{parent}.{RESNET[layer]}.{own}" if layer in RESNET and "transformer_blocks" not in key else key


def _vae(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in tensors.items():
        key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
        key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
        key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{1 - int(m[1])}.block.{m[2]}", key)
        key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample", key)
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{1 + int(m[1])}", key)
        key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if "mid_block.attentions.0" in key:
            for ours, theirs in VAE_ATTENTION.items():
                key = key.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
            # The original's attention is made of 1 x 1 convolutions.
            tensor = tensor[:, :, None, None] if tensor.dim() == 2 else tensor
        yield key, tensor
