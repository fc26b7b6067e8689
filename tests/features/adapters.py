"""Rows: networks and guidances that are added to a pipeline."""

from typing import Any

import diffusers
import torch
from diffusers.hooks import LayerSkipConfig, apply_faster_cache, apply_layer_skip, apply_pyramid_attention_broadcast
from torch import Tensor

from tests.features.additions import around, controlnet, ip_adapter, load_ip_adapters, picture, t2i_adapter
from tests.features.models import call
from tests.features.row import INTEGERS, Section

ADAPTERS = Section(
    "Adapters and guidance", "Added networks compute in floating point, the denoiser's layers in integers."
)
BLOCKS = "up_blocks.0.attentions.0.transformer_blocks"
NO_WEIGHT = dict.fromkeys(INTEGERS, "IntegerConv2d has no weight in floating point for another network to start from")


@ADAPTERS.row("ControlNet")
def _controlnet(pipe: Any) -> Tensor:
    controlled = around("StableDiffusionControlNetPipeline", pipe, controlnet=controlnet(pipe))
    return call(controlled, image=picture(pipe))


@ADAPTERS.row("several ControlNets")
def _controlnets(pipe: Any) -> Tensor:
    networks = [controlnet(pipe, seed) for seed in (1, 2)]
    controlled = around("StableDiffusionControlNetPipeline", pipe, controlnet=networks)
    images = [picture(pipe, seed) for seed in (0, 1)]
    return call(controlled, image=images, controlnet_conditioning_scale=[0.5, 0.8])


@ADAPTERS.row("ControlNet in guess mode, for a part of the steps", emulated=False)
def _guessing(pipe: Any) -> Tensor:
    controlled = around("StableDiffusionControlNetPipeline", pipe, controlnet=controlnet(pipe))
    return call(controlled, image=picture(pipe), guess_mode=True, control_guidance_end=0.6)


@ADAPTERS.row("ControlNet with an image or a mask to start from", emulated=False, slow=True)
def _controlled_inpainting(pipe: Any) -> Tensor:
    controlled = around("StableDiffusionControlNetInpaintPipeline", pipe, controlnet=controlnet(pipe))
    control, mask = picture(pipe, 1), picture(pipe, 0, "mask_image")
    return call(controlled, image=picture(pipe), control_image=control, mask_image=mask)


@ADAPTERS.row("ControlNet of SDXL", "sdxl", slow=True)
def _controlnet_of_sdxl(pipe: Any) -> Tensor:
    controlled = around("StableDiffusionXLControlNetPipeline", pipe, controlnet=controlnet(pipe))
    return call(controlled, image=picture(pipe))


@ADAPTERS.row("`ControlNetModel.from_unet` of a quantized U-Net", refused=NO_WEIGHT, same=0.0)
def _controlnet_from_unet(pipe: Any) -> Tensor:
    network = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8))
    controlled = around("StableDiffusionControlNetPipeline", pipe, controlnet=network)  # its last layers are zero
    return call(controlled, image=picture(pipe))


@ADAPTERS.row("AnimateDiff (`UNetMotionModel.from_unet2d`)", refused=NO_WEIGHT, emulated=True)
def _animatediff(pipe: Any) -> Tensor:
    channels = pipe.unet.config.block_out_channels
    with torch.random.fork_rng():
        torch.manual_seed(0)
        motion = diffusers.MotionAdapter(
            block_out_channels=channels,
            motion_layers_per_block=1,
            motion_norm_num_groups=2,
            motion_num_attention_heads=2,
        )
    return call(around("AnimateDiffPipeline", pipe, motion_adapter=motion), num_frames=1)[:, :, 0]


@ADAPTERS.row("T2I-Adapter")
def _t2i_adapter(pipe: Any) -> Tensor:
    adapted = around("StableDiffusionAdapterPipeline", pipe, adapter=t2i_adapter(pipe))
    return call(adapted, image=picture(pipe))


@ADAPTERS.row("several T2I-Adapters", emulated=False, slow=True)
def _t2i_adapters(pipe: Any) -> Tensor:
    adapted = around("StableDiffusionAdapterPipeline", pipe, adapter=[t2i_adapter(pipe, seed) for seed in (1, 2)])
    return call(adapted, image=[picture(pipe, seed) for seed in (0, 1)], adapter_conditioning_scale=[0.4, 0.6])


@ADAPTERS.row("IP-Adapter")
def _ip_adapter(pipe: Any) -> Tensor:
    images = load_ip_adapters(pipe, ip_adapter(pipe))
    pipe.set_ip_adapter_scale(0.7)
    return call(pipe, ip_adapter_image_embeds=images)


@ADAPTERS.row("several IP-Adapters", emulated=False, slow=True)
def _ip_adapters(pipe: Any) -> Tensor:
    images = load_ip_adapters(pipe, ip_adapter(pipe, 0), ip_adapter(pipe, 1))
    pipe.set_ip_adapter_scale([0.7, 0.3])
    return call(pipe, ip_adapter_image_embeds=images)


@ADAPTERS.row("`unload_ip_adapter`: the images from before", same=0.0)
def _unloaded_ip_adapter(pipe: Any) -> Tensor:
    load_ip_adapters(pipe, ip_adapter(pipe))
    pipe.register_modules(image_encoder=None, feature_extractor=None)
    pipe.unload_ip_adapter()
    return call(pipe)


@ADAPTERS.row("textual inversion")
def _textual_inversion(pipe: Any) -> Tensor:
    vectors = torch.randn(2, pipe.text_encoder.config.hidden_size, generator=torch.Generator().manual_seed(3))
    pipe.load_textual_inversion({"<toy>": vectors}, token="<toy>")
    return call(pipe, prompt="a cat <toy>", guidance_scale=7.5)


@ADAPTERS.row("FreeU")
def _freeu(pipe: Any) -> Tensor:
    pipe.enable_freeu(s1=0.2, s2=0.2, b1=1.6, b2=1.6)
    return call(pipe)


@ADAPTERS.row("`disable_freeu`: the images from before", same=0.0)
def _no_freeu(pipe: Any) -> Tensor:
    pipe.enable_freeu(s1=0.2, s2=0.2, b1=1.6, b2=1.6)
    pipe.disable_freeu()
    return call(pipe)


@ADAPTERS.row("perturbed attention (PAG)")
def _pag(pipe: Any) -> Tensor:
    return call(around("StableDiffusionPAGPipeline", pipe, pag_applied_layers=["up"]), pag_scale=3.0)


@ADAPTERS.row("PAG of SDXL", "sdxl", slow=True)
def _pag_of_sdxl(pipe: Any) -> Tensor:
    return call(around("StableDiffusionXLPAGPipeline", pipe, pag_applied_layers=["up"]), pag_scale=3.0)


@ADAPTERS.row("PAG of Stable Diffusion 3", "sd3")
def _pag_of_sd3(pipe: Any) -> Tensor:
    return call(around("StableDiffusion3PAGPipeline", pipe, pag_applied_layers=["blocks.1"]), pag_scale=3.0)


@ADAPTERS.row("self-attention guidance (SAG)", emulated=False)
def _sag(pipe: Any) -> Tensor:
    return call(around("StableDiffusionSAGPipeline", pipe), sag_scale=0.75)


@ADAPTERS.row("skipped layers, `skip_guidance_layers`", "sd3")
def _skipped_layers(pipe: Any) -> Tensor:
    span = {"skip_layer_guidance_start": -1.0, "skip_layer_guidance_stop": 1.0, "skip_layer_guidance_scale": 2.8}
    return call(pipe, skip_guidance_layers=[1], **span)


@ADAPTERS.row("skipped feed-forwards, `LayerSkipConfig`", "sd3")
def _skipped_feed_forward(pipe: Any) -> Tensor:
    skip = LayerSkipConfig(indices=[1], fqn="transformer_blocks", skip_attention=False)
    apply_layer_skip(pipe.transformer, skip)
    return call(pipe)


@ADAPTERS.row("skipped attention, `LayerSkipConfig`")
def _skipped_attention(pipe: Any) -> Tensor:
    apply_layer_skip(pipe.unet, LayerSkipConfig(indices=[0], fqn=BLOCKS, skip_ff=False))
    return call(pipe)


@ADAPTERS.row("FasterCache", "sd3")
def _faster_cache(pipe: Any) -> Tensor:
    config = diffusers.FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 2000),
        spatial_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: 500,
        attention_weight_callback=lambda _: 30.0,
        is_guidance_distilled=True,
        tensor_format="BCHW",
    )
    apply_faster_cache(pipe.transformer, config)
    return call(pipe)


def more_steps(pipe: Any) -> Tensor:
    return call(pipe, num_inference_steps=5)


@ADAPTERS.row("pyramid attention broadcast (PAB)", without=more_steps, emulated=False)
def _attention_broadcast(pipe: Any) -> Tensor:
    config = diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=10,
        spatial_attention_timestep_skip_range=(-1, 2000),
        spatial_attention_block_identifiers=("transformer_blocks",),
        cross_attention_block_skip_range=10,
        cross_attention_timestep_skip_range=(-1, 2000),
        cross_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(pipe.unet, config)
    return more_steps(pipe)


@ADAPTERS.row("first block cache", "flux")
def _first_block_cache(pipe: Any) -> Tensor:
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=5.0))
    return call(pipe)


@ADAPTERS.row("`disable_cache`: the images from before", "flux", same=0.0)
def _no_cache(pipe: Any) -> Tensor:
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=5.0))
    call(pipe)
    pipe.transformer.disable_cache()
    return call(pipe)


@ADAPTERS.row("DeepCache and others that replace the `forward` of blocks", emulated=False)
def _deep_cache(pipe: Any) -> Tensor:
    block, results = pipe.unet.up_blocks[0], list[Tensor]()
    forward = block.forward

    def cached(*args: Any, **kwargs: Any) -> Tensor:
        """Computes the block in the first call alone."""
        if not results:
            results.append(forward(*args, **kwargs))
        return results[0]

    block.forward = cached
    return call(pipe)
