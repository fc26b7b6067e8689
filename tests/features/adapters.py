"""Rows: networks and guidances that are added to a pipeline."""

from typing import Any

import diffusers
import torch
from diffusers.guiders import SmoothedEnergyGuidance
from diffusers.hooks import LayerSkipConfig, SmoothedEnergyGuidanceConfig, apply_layer_skip
from torch import Tensor

from tests.features.additions import around, controlnet, ip_adapter, load_ip_adapters, picture, t2i_adapter
from tests.features.models import call
from tests.features.row import INTEGERS, RUNTIMES, Section

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


@ADAPTERS.row("`ControlNetModel.from_unet` of a quantized U-Net", refused=NO_WEIGHT, same=0.0, emulated=False)
def _controlnet_from_unet(pipe: Any) -> Tensor:
    network = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8))
    controlled = around("StableDiffusionControlNetPipeline", pipe, controlnet=network)  # its last layers are zero
    return call(controlled, image=picture(pipe))


@ADAPTERS.row("AnimateDiff (`UNetMotionModel.from_unet2d`)", refused=NO_WEIGHT)
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


NO_GRADIENT = "sample requires a gradient, which a quantized denoiser does not have: it rounds its inputs"


@ADAPTERS.row("Attend-and-Excite", refused=dict.fromkeys(RUNTIMES, NO_GRADIENT))
def _attend_and_excite(pipe: Any) -> Tensor:
    excited = around("StableDiffusionAttendAndExcitePipeline", pipe)
    return call(excited, token_indices=[2], attn_res=(4, 4), max_iter_to_alter=2, thresholds={})


BOXES = {"gligen_phrases": ["a cat", "a hat"], "gligen_boxes": [[0.1, 0.2, 0.6, 0.9], [0.3, 0.0, 0.5, 0.3]]}


@ADAPTERS.row("GLIGEN; quantize it with `--exclude '*.fuser.*' --exclude 'position_net.*'`", "gligen", slow=True)
def _gligen(pipe: Any) -> Tensor:
    return call(around("StableDiffusionGLIGENPipeline", pipe), **BOXES, gligen_scheduled_sampling_beta=0.7)


UNSMOOTHED = "smoothed energy guidance would change nothing: it hooks queries of nn.Linear"


@ADAPTERS.row("smoothed energy guidance (SEG)", refused=dict.fromkeys(INTEGERS, UNSMOOTHED))
def _smoothed_energy(pipe: Any) -> Tensor:
    """Smooths queries, as modular pipelines do for one of their calls of the denoiser."""
    places = [name for name, _ in pipe.unet.named_modules() if name.endswith("transformer_blocks")]
    configs = [SmoothedEnergyGuidanceConfig([0], fqn=place) for place in places]
    guider = SmoothedEnergyGuidance(seg_blur_sigma=1e9, seg_guidance_config=configs)
    guider.set_state(step=1, num_inference_steps=3, timestep=torch.tensor(500))
    guider._count_prepared = 3
    guider.prepare_models(pipe.unet)
    return call(pipe)


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
