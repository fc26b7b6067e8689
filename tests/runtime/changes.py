"""Changes that users make to the modules of a lowered denoiser, for the tests of runtimes."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor2_0, PAGIdentitySelfAttnProcessor2_0
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bitbrush.network.layers import QuantizedLayer
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import round_to_nearest, weight_qparams
from bitbrush.runtime.fused_forward import FusedForward
from bitbrush.runtime.onednn.runtime import OneDnnRuntime
from bitbrush.runtime.reference import ReferenceRuntime
from bitbrush.runtime.tools import best_tools
from bitbrush.timeline.schedule import ActivationSchedule

RESNET = "up_blocks.0.resnets.0"
TRANSFORMER = "up_blocks.0.attentions.0"
BLOCK = f"{TRANSFORMER}.transformer_blocks.0"
UPSAMPLER = "up_blocks.0.upsamplers.0"
CLOSE = 6e-4
"""Relative distance of two runtimes in float32 whose inputs have 16 bits."""

Call = Callable[[nn.Module], Tensor]
Change = Callable[[nn.Module], Any]


def quantized_layers(unet: nn.Module) -> list[QuantizedLayer]:
    """All layers with 8-bit weights and 16-bit inputs, so that runtimes differ by little."""
    layers = []
    for name, module in unet.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.data
            rounded = round_to_nearest(weight, weight_qparams(weight, 8, WeightRange.MIN_MAX))
            bias = None if module.bias is None else module.bias.data.clone()
            schedule = ActivationSchedule.static(QParams.from_range(-8, 8, 16))
            layers.append(QuantizedLayer(name, rounded, bias, schedule))
    return layers


def call(unet: nn.Module, **arguments: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 16, generator=generator)
    with torch.no_grad():
        y: Tensor = unet(x, 500, **{"encoder_hidden_states": text, **arguments}).sample
    return y


def apart(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).norm() / expected.norm())


class Pair:
    """One denoiser twice: ``exact`` by the reference, ``ours`` by oneDNN in ``dtype``."""

    def __init__(self, unet: nn.Module, dtype: torch.dtype) -> None:
        layers = quantized_layers(unet)
        self.exact, self.ours = copy.deepcopy(unet), copy.deepcopy(unet)
        ReferenceRuntime().lower(self.exact, layers)
        OneDnnRuntime(best_tools(), dtype).lower(self.ours, layers)

    def change(self, change: Change) -> None:
        """Makes it in both, with the same random numbers."""
        for unet in (self.exact, self.ours):
            torch.manual_seed(0)
            change(unet)


def fused(unet: nn.Module) -> set[str]:
    """The blocks that are computed in one go, now."""
    forwards = {name: vars(module).get("forward") for name, module in unet.named_modules()}
    return {name for name, forward in forwards.items() if isinstance(forward, FusedForward) and forward.may_fuse()}


class Half:
    """A processor of a user's own: half of what attention would be."""

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = AttnProcessor2_0()(attn, hidden_states, *args, **kwargs) / 2
        return y


class WithWeights(nn.Module):
    """A processor that is a module, as an IP-Adapter's is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        y: Tensor = self.layer(hidden_states)
        return y


class Merging(BasicTransformerBlock):
    """Token merging changes a block's class; this one keeps what it was given instead."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return 1.5 * hidden_states


class Doubling(UNet2DConditionModel):
    """Libraries for large pictures change the denoiser's class."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return doubled(super().forward)(*args, **kwargs)


def doubled(forward: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(2 * sample, *args, **kwargs)

    return wrapped


def at(name: str, change: Change) -> Change:
    return lambda unet: change(unet.get_submodule(name))


def attribute(name: str, key: str, value: Any) -> Change:
    return at(name, lambda module: setattr(module, key, value))


def scaled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward around a forward, as caches put it in place."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return 1.5 * forward(*args, **kwargs)

    return wrapped


def overridden(module: nn.Module) -> None:
    module.forward = scaled(module.forward)


class Scaling(ModelHook):
    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        return 1.5 * output


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def with_dropout(block: nn.Module) -> None:
    block.attn1.to_out[1] = nn.Dropout(1.0).train()


CHANGES: dict[str, Change] = {
    "a processor of one's own": lambda unet: unet.set_attn_processor(Half()),
    "a processor of one attention": attribute(f"{BLOCK}.attn1", "processor", Half()),
    "a processor's class": at(f"{BLOCK}.attn1", lambda attn: setattr(attn.processor, "__class__", Half)),
    "perturbed attention": at(f"{BLOCK}.attn1", lambda attn: attn.set_processor(PAGIdentitySelfAttnProcessor2_0())),
    "a processor that is a module": at(f"{BLOCK}.attn1", lambda attn: attn.set_processor(WithWeights(16))),
    "a hook": at(f"{RESNET}.conv1", lambda conv: conv.register_forward_hook(lambda _, __, y: 1.5 * y)),
    "a pre-hook of a layer": at(
        f"{RESNET}.conv1", lambda conv: conv.register_forward_pre_hook(lambda _, args: (1.5 * args[0],))
    ),
    "a pre-hook": at(f"{BLOCK}.ff", lambda ff: ff.register_forward_pre_hook(lambda _, args: (1.5 * args[0],))),
    "a forward": at(f"{BLOCK}.attn2.to_v", overridden),
    "a forward of a norm": at(f"{TRANSFORMER}.norm", overridden),
    "a forward of a block": at(RESNET, overridden),
    "accelerate's hook": at(f"{RESNET}.conv2", lambda conv: add_hook_to_module(conv, Scaling())),
    "accelerate's hook of a block": at(BLOCK, lambda block: add_hook_to_module(block, Scaling())),
    "a class": attribute(BLOCK, "__class__", Merging),
    "a layer": at(f"{BLOCK}.attn1", lambda attn: setattr(attn, "to_q", nn.Linear(16, 16))),
    "a layer in a list": at(f"{BLOCK}.attn2.to_out", lambda layers: layers.__setitem__(0, nn.Identity())),
    "a convolution": at(RESNET, lambda resnet: setattr(resnet, "conv2", nn.Conv2d(16, 16, 3, padding=1))),
    "a norm": at(RESNET, lambda resnet: setattr(resnet, "norm2", nn.GroupNorm(2, 16))),
    "an activation": at(RESNET, lambda resnet: setattr(resnet, "nonlinearity", nn.Tanh())),
    "a projection": at(TRANSFORMER, lambda image: setattr(image, "proj_in", nn.Conv2d(16, 16, 1))),
    "a block": at(f"{TRANSFORMER}.transformer_blocks", lambda blocks: blocks.__setitem__(0, Passing())),
    "an upsampler's convolution": at(UPSAMPLER, lambda up: setattr(up, "conv", nn.Identity())),
    "the last norm": lambda unet: setattr(unet, "conv_norm_out", nn.GroupNorm(2, 8)),
    "the last activation": lambda unet: setattr(unet, "conv_act", nn.Tanh()),
    "a scale of a residual block": attribute(RESNET, "output_scale_factor", 2.0),
    "a scale of attention": attribute(f"{BLOCK}.attn1", "rescale_output_factor", 3.0),
    "a residual connection": attribute(f"{BLOCK}.attn1", "residual_connection", True),
    "dropout": at(BLOCK, with_dropout),
    "a parameter": attribute(f"{RESNET}.norm1", "weight", nn.Parameter(torch.full((32,), 0.3))),
    "a parameter's values": at(f"{BLOCK}.norm3", lambda norm: nn.init.constant_(norm.weight, 0.3)),
    "a parametrization": at(
        f"{BLOCK}.norm1", lambda norm: parametrize.register_parametrization(norm, "weight", Doubled())
    ),
    "the denoiser's class": lambda unet: setattr(unet, "__class__", Doubling),
    "the denoiser's forward": lambda unet: setattr(unet, "forward", doubled(unet.forward)),
    "skips scaled by FreeU": lambda unet: unet.enable_freeu(s1=0.2, s2=0.2, b1=1.6, b2=1.6),
}


class Passing(nn.Module):
    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return 1.5 * hidden_states
