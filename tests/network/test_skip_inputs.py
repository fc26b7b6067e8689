"""Convolutions that read a skip, split: found where skips really begin, the same function, halves of their own."""

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from bitbrush.network.families import family_of
from bitbrush.network.layers import layer_specs
from bitbrush.network.lazy_weights import LazyWeight, set_lazy_weight, shallow_copy
from bitbrush.network.skip_inputs import SplitConv2d, split_, split_begins, with_split_skips
from bitbrush.network.unet import UNET
from tests.artifact.pipelines import CASES, REFINER, SD1, SDXL, pipeline

SHALLOW = {**SD1, "layers_per_block": (1, 2, 1, 3), "block_out_channels": (4, 8, 12, 16)}


def unet(config: dict[str, object]) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel.from_config({"in_channels": 4, "out_channels": 4, **config}).eval()


def answer(denoiser: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    dtype, config = next(denoiser.parameters()).dtype, denoiser.config
    latents = torch.randn(2, 4, 8, 8, generator=generator, dtype=dtype)
    text = torch.randn(2, 5, config["cross_attention_dim"], generator=generator, dtype=dtype)
    conditions = None
    if config["addition_embed_type"] == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        conditions = {"text_embeds": torch.randn(2, pooled, generator=generator, dtype=dtype)}
        conditions["time_ids"] = torch.ones(2, 6, dtype=dtype)
    with torch.no_grad():
        y: Tensor = denoiser(latents, 300, text, added_cond_kwargs=conditions).sample
    return y


@pytest.mark.parametrize("config", [SD1, SDXL, SHALLOW], ids=["sd1", "sdxl", "shallow"])
def test_skips_begin_where_the_network_concatenates_them(
    config: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, cat = unet(config), torch.cat
    concatenated: list[tuple[int, ...]] = []

    def watching(tensors: list[Tensor], dim: int = 0) -> Tensor:
        if dim == 1 and tensors[0].dim() == 4:
            concatenated.append(tuple(tensor.shape[1] for tensor in tensors))
        return cat(tensors, dim)

    monkeypatch.setattr(torch, "cat", watching)
    answer(denoiser)
    begins = UNET.skip_readers(denoiser)
    first = [begin for name, begin in begins.items() if name.endswith("conv1")]
    assert first == [widths[0] for widths in concatenated]
    assert all(begins[name.replace("conv1", "conv_shortcut")] == begins[name] for name in begins)
    assert len(begins) == 2 * len(first) > 4
    assert [denoiser.get_submodule(name).in_channels for name in begins if name.endswith("conv1")] == [
        sum(widths) for widths in concatenated
    ]


@pytest.mark.parametrize("config", [SD1, SDXL, SHALLOW], ids=["sd1", "sdxl", "shallow"])
def test_a_split_denoiser_computes_the_same(config: dict[str, object]) -> None:
    denoiser = unet(config).double()
    before = answer(denoiser)
    split = with_split_skips(denoiser, UNET)
    torch.testing.assert_close(answer(split), before, rtol=1e-10, atol=1e-12)
    assert torch.equal(answer(denoiser), before)
    assert not split_begins(denoiser)
    assert split_begins(split) == UNET.skip_readers(denoiser)
    assert with_split_skips(split, UNET) is split


def test_halves_are_the_weight_cut_in_two(tiny_pipe: StableDiffusionPipeline) -> None:
    whole = tiny_pipe.unet
    split = with_split_skips(whole, UNET)
    for name, begin in UNET.skip_readers(whole).items():
        made, conv = split.get_submodule(name), whole.get_submodule(name)
        assert isinstance(made, SplitConv2d)
        assert torch.equal(torch.cat([made.hidden.weight, made.skip.weight], 1), conv.weight)
        assert (made.hidden.in_channels, made.skip.in_channels) == (begin, conv.in_channels - begin)
        assert torch.equal(made.hidden.bias, conv.bias)
        assert made.skip.bias is not None
        assert not made.skip.bias.any()
        assert made.hidden.padding == made.skip.padding == conv.padding


def test_weights_that_are_held_elsewhere_stay_there(tiny_pipe: StableDiffusionPipeline) -> None:
    whole = shallow_copy(tiny_pipe.unet)
    expected, reads = with_split_skips(whole, UNET), []
    for name in UNET.skip_readers(whole):
        conv = whole.get_submodule(name)
        weight = conv.weight.detach()
        set_lazy_weight(conv, LazyWeight(lambda weight=weight: reads.append(1) or weight.clone()))  # type: ignore[func-returns-value]
    split = with_split_skips(whole, UNET)
    assert not reads
    assert torch.equal(answer(split), answer(expected))
    assert reads


def test_both_halves_of_an_edge_layer_are_edges(tiny_pipe: StableDiffusionPipeline) -> None:
    denoiser = with_split_skips(tiny_pipe.unet, UNET)
    high_precision_names = {spec.name for spec in layer_specs(denoiser, UNET, weight_bits=4) if spec.high_precision}
    shortcut = "up_blocks.1.resnets.1.conv_shortcut"
    assert high_precision_names == {"conv_in", "conv_out", f"{shortcut}.hidden", f"{shortcut}.skip"}


@pytest.mark.parametrize("pattern", ["*resnets.0.conv_shortcut", "*resnets.0.conv_shortcut.*"])
def test_halves_are_fine_by_the_name_of_the_whole(tiny_pipe: StableDiffusionPipeline, pattern: str) -> None:
    denoiser = with_split_skips(tiny_pipe.unet, UNET)
    plain, high_precision = (
        {
            spec.name
            for spec in layer_specs(denoiser, UNET, weight_bits=4, high_precision=patterns)
            if spec.high_precision
        }
        for patterns in ((), (pattern,))
    )
    added = {name for name in high_precision - plain if name.startswith("up_blocks")}
    assert added == {f"up_blocks.{n}.resnets.0.conv_shortcut.{half}" for n in (0, 1) for half in ("hidden", "skip")}


def test_excluded_layers_stay_whole(tiny_pipe: StableDiffusionPipeline) -> None:
    split = with_split_skips(tiny_pipe.unet, UNET, ["*.conv1"])
    assert split_begins(split)
    assert all(name.endswith("conv_shortcut") for name in split_begins(split))
    assert with_split_skips(tiny_pipe.unet, UNET, ["up_blocks.*"]) is tiny_pipe.unet


def test_a_denoiser_without_skips_is_refused() -> None:
    pipe = pipeline(CASES["pixart"])
    with pytest.raises(ValueError, match="no convolution of this PixArtTransformer2DModel is known to read a skip"):
        with_split_skips(pipe.transformer, family_of(pipe))


def test_nothing_is_told_of_blocks_of_another_kind() -> None:
    config = {**REFINER, "up_block_types": ("SimpleCrossAttnUpBlock2D",) * 4}
    assert not UNET.skip_readers(unet({**config, "addition_embed_type": None}))


def test_names_and_channels_rebuild_it(tiny_pipe: StableDiffusionPipeline) -> None:
    split, again = with_split_skips(tiny_pipe.unet, UNET), copy.deepcopy(tiny_pipe.unet)
    split_(again, split_begins(split))
    assert again.state_dict().keys() == split.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), split.parameters(), strict=True))
