"""Networks and inputs that rows add to pipelines: seeded, of the size of the pipeline's denoiser."""

import inspect
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import nn

from tests.artifact import pipelines

WIDTHS = ("down_block_types", "block_out_channels", "layers_per_block", "norm_num_groups", "attention_head_dim")
TEXTS = ("cross_attention_dim", "transformer_layers_per_block", "use_linear_projection")
SIZES = ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")


def around(kind: str, pipe: Any, **options: Any) -> Any:
    """Makes another diffusers pipeline of the same networks."""
    made = getattr(diffusers, kind)
    known = inspect.signature(made.__init__).parameters
    components = {name: part for name, part in pipe.components.items() if name in known}
    if "requires_safety_checker" in known:
        components["requires_safety_checker"] = False
    return made(**{**components, **options})


def picture(pipe: Any, seed: int = 0, name: str = "image") -> Image.Image:
    """Returns an image of the size that the pipeline makes."""
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor if hasattr(pipe, "unet") else pipelines.PIXELS
    return pipelines.picture(seed, name).resize((side, side))


def controlnet(pipe: Any, seed: int = 1) -> nn.Module:
    """Makes a ControlNet whose last layers are not zero."""
    config = pipe.unet.config
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = diffusers.ControlNetModel(
            **{key: config[key] for key in (*WIDTHS, *TEXTS, *SIZES)},
            mid_block_type=config["mid_block_type"] or "UNetMidBlock2D",
            conditioning_embedding_out_channels=(4, 8),
        )
        for layer in [*network.controlnet_down_blocks, network.controlnet_mid_block]:
            nn.init.normal_(layer.weight, std=0.2)
    return network.eval()


def t2i_adapter(pipe: Any, seed: int = 1) -> nn.Module:
    """Makes a T2I-Adapter with strong outputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter = diffusers.T2IAdapter(
            channels=list(pipe.unet.config.block_out_channels), num_res_blocks=1, downscale_factor=2
        )
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.mul_(2)
    return adapter.eval()


def ip_adapter(pipe: Any, seed: int = 0) -> dict[str, Any]:
    """Makes the weights of an IP-Adapter: one token of 8 values becomes four of the text's width."""
    generator = torch.Generator().manual_seed(seed)
    heads: dict[str, torch.Tensor] = {}
    attentions = [name.removesuffix(".processor") for name in pipe.unet.attn_processors if "attn2" in name]
    for number, name in enumerate(attentions):
        width = pipe.unet.get_submodule(name).inner_dim
        heads |= {
            f"{2 * number + 1}.to_{part}_ip.weight": 0.3 * torch.randn(width, 16, generator=generator) for part in "kv"
        }
    projection = {"proj.weight": torch.randn(64, 8, generator=generator), "proj.bias": torch.zeros(64)}
    projection |= {"norm.weight": torch.ones(16), "norm.bias": torch.zeros(16)}
    return {"image_proj": projection, "ip_adapter": heads}


def load_ip_adapters(pipe: Any, *weights: dict[str, Any]) -> list[torch.Tensor]:
    """Loads IP-Adapters as diffusers does, and returns embedded image prompts for them."""
    pipe.unet._load_ip_adapter_weights(list(weights), low_cpu_mem_usage=False)
    return [torch.ones(2, 1, 8) * (number + 1) for number in range(len(weights))]
