"""Blocks and layers next to the latents, of the published configurations on the meta device."""

from typing import Any

import diffusers
import pytest
from torch import nn

from bitbrush.network.declared import declared_blocks, layers_next_to_latents
from bitbrush.network.empty import without_values
from bitbrush.network.families import FAMILIES
from bitbrush.network.generic import generic_family

EDGES = {
    "PixArtTransformer2DModel": ("pos_embed.proj", "proj_out"),
    "SD3Transformer2DModel": ("pos_embed.proj", "proj_out"),
    "FluxTransformer2DModel": ("x_embedder", "proj_out"),
    "Flux2Transformer2DModel": ("x_embedder", "proj_out"),
    "ZImageTransformer2DModel": ("all_x_embedder.2-1", "all_final_layer.2-1.linear"),
    "QwenImageTransformer2DModel": ("img_in", "proj_out"),
    "QwenImage21Transformer2DModel": ("img_in", "proj_out"),
    "Krea2Transformer2DModel": ("img_in", "final_layer.linear"),
    "SanaTransformer2DModel": ("patch_embed.proj", "proj_out"),
    "Lumina2Transformer2DModel": ("x_embedder", "norm_out.linear_2"),
    "ErnieImageTransformer2DModel": ("x_embedder.proj", "final_linear"),
    "CogView4Transformer2DModel": ("patch_embed.proj", "proj_out"),
    "HiDreamImageTransformer2DModel": ("x_embedder.proj", "final_layer.linear"),
    "WanTransformer3DModel": ("proj_out",),  # latents enter through a Conv3d, which stays as it is
    "Flux3Transformer2DModel": ("x_embedders.image", "x_embedders.image_cond", "proj_out"),
    "AuraFlowTransformer2DModel": ("pos_embed.proj", "proj_out"),
    "LTXVideoTransformer3DModel": ("proj_in", "proj_out"),
    "MochiTransformer3DModel": ("patch_embed.proj", "proj_out"),
    "OvisImageTransformer2DModel": ("x_embedder", "proj_out"),
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "caption_channels": [4096, 4096],
        "llama_layers": [0, 1],
        "axes_dims_rope": (64, 32, 32),
    },
}


def published(kind: str) -> nn.Module:
    """The denoiser of a class's default configuration, which is the published one, without values."""
    if not hasattr(diffusers, kind):
        pytest.skip(f"diffusers {diffusers.__version__} has no {kind}")
    with without_values():
        network: nn.Module = getattr(diffusers, kind)(**CONFIGURATIONS.get(kind, {}))
    return network


@pytest.mark.parametrize("kind", EDGES)
def test_published_configurations(kind: str) -> None:
    denoiser = published(kind)
    assert layers_next_to_latents(denoiser) == EDGES[kind]
    blocks = declared_blocks(denoiser)
    layers = [name for name, part in denoiser.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    within = [name for name in layers if name.startswith(tuple(f"{block}." for block in blocks))]
    assert len(within) > 0.9 * len(layers)
    assert not set(EDGES[kind]) & set(within)


def test_every_family_by_declaration_is_among_them() -> None:
    assert {family.denoiser_class for family in FAMILIES} - {"UNet2DConditionModel"} <= set(EDGES)


class Network(nn.Module):
    """A denoiser that declares nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, x: Any, sigma: Any) -> Any:
        return self.layers[0](x) * sigma


def test_a_network_without_declarations_has_neither() -> None:
    assert declared_blocks(Network()) == ()
    assert layers_next_to_latents(Network()) == ()


def test_generic_finds_a_denoiser_by_each_name_of_its_time() -> None:
    pipe: Any = type("Pipe", (), {"components": {"net": Network(), "text": nn.Linear(2, 2)}})()
    family = generic_family(pipe)
    assert (family.component, family.denoiser_class) == ("net", "Network")
