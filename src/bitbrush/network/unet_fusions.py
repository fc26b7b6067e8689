"""Fused ops of a UNet2DConditionModel and of a VAE's decoder: diffusers' blocks with default options."""

from collections.abc import Iterator
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention as DiffusersAttention
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from bitbrush.network.fusions import (
    Attention,
    Fusion,
    ImageTransformer,
    PreciseNorm,
    ResidualBlock,
    TransformerBlock,
    UpsampledConv,
)


def unet_fusions(denoiser: nn.Module) -> tuple[Fusion, ...]:
    """Lists the fused ops in module order; blocks with options that the descriptions do not cover are left out."""
    return tuple(fusion for name, module in denoiser.named_modules() for fusion in _of(name, module))


def _of(name: str, module: Any) -> Iterator[Fusion]:
    match module:
        case ResnetBlock2D() if _is_plain_residual(module):
            yield _residual(name, module)
        case BasicTransformerBlock() if _is_plain_transformer(module):
            yield _transformer(name, module)
        case Transformer2DModel() if module.is_input_continuous and _affine(module.norm):
            blocks = tuple(f"{name}.transformer_blocks.{index}" for index in range(len(module.transformer_blocks)))
            yield ImageTransformer(name, f"{name}.norm", f"{name}.proj_in", blocks, f"{name}.proj_out")
        case Upsample2D() if isinstance(module.conv, nn.Conv2d) and module.interpolate and module.norm is None:
            yield UpsampledConv(name, f"{name}.conv")
        case UNet2DConditionModel() | Decoder() if _affine(module.conv_norm_out):
            yield PreciseNorm("conv_norm_out", "conv_out")


def _affine(norm: Any) -> bool:
    return isinstance(norm, nn.GroupNorm | nn.LayerNorm) and len(list(norm.parameters(recurse=False))) == 2


def _is_plain_residual(block: Any) -> bool:
    return (
        block.upsample is None
        and block.downsample is None
        and (block.time_embedding_norm == "default" or _takes_no_time(block))
        and not block.skip_time_act
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.output_scale_factor == 1
        and _affine(block.norm1)
        and _affine(block.norm2)
    )


def _takes_no_time(block: Any) -> bool:
    """Whether a block ignores the time embedding, as those of a VAE's decoder do."""
    return block.time_embedding_norm == "group" and block.time_emb_proj is None


def _residual(name: str, block: Any) -> ResidualBlock:
    return ResidualBlock(
        name,
        norm1=f"{name}.norm1",
        conv1=f"{name}.conv1",
        time_projection=f"{name}.time_emb_proj" if block.time_emb_proj is not None else None,
        norm2=f"{name}.norm2",
        conv2=f"{name}.conv2",
        shortcut=f"{name}.conv_shortcut" if block.conv_shortcut is not None else None,
    )


def _is_plain_transformer(block: Any) -> bool:
    attentions = [attention for attention in (block.attn1, block.attn2) if attention is not None]
    norms = [norm for norm in (block.norm1, block.norm2, block.norm3) if norm is not None]
    return (
        block.norm_type == "layer_norm"
        and block.pos_embed is None
        and not block.only_cross_attention
        and not block.double_self_attention
        and not hasattr(block, "fuser")
        and (block.norm2 is None) == (block.attn2 is None)
        and block.norm3 is not None
        and all(_affine(norm) for norm in norms)
        and all(_is_plain_attention(attention) for attention in attentions)
        and isinstance(block.ff.net[0], GEGLU)
    )


def _is_plain_attention(attention: DiffusersAttention) -> bool:
    return (
        isinstance(attention.processor, AttnProcessor2_0)
        and attention.spatial_norm is None
        and attention.group_norm is None
        and attention.norm_q is None
        and attention.norm_k is None
        and not attention.norm_cross
        and not attention.residual_connection
        and attention.rescale_output_factor == 1
    )


def _transformer(name: str, block: Any) -> TransformerBlock:
    def attention(child: str, module: DiffusersAttention) -> Attention:
        query, key, value, output = (f"{name}.{child}.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0"))
        return Attention(query, key, value, output, module.heads)

    return TransformerBlock(
        name,
        norm1=f"{name}.norm1",
        self_attention=attention("attn1", block.attn1),
        norm2=f"{name}.norm2" if block.attn2 is not None else None,
        cross_attention=attention("attn2", block.attn2) if block.attn2 is not None else None,
        norm3=f"{name}.norm3",
        expand=f"{name}.ff.net.0.proj",
        shrink=f"{name}.ff.net.2",
    )
