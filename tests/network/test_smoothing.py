"""Moving scales between channels changes what is quantized, and not what is computed."""

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline

from bitbrush.network.families import family_of
from bitbrush.network.smoothing import SmoothableInput, channel_scale, reader_weight, smooth_, smoothable_inputs


def inputs_of(pipe: StableDiffusionPipeline, names: list[str]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        pipe.unet.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
        for name in names
    ]
    torch.manual_seed(1)
    latents, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, pipe.unet.config.cross_attention_dim)
    with torch.no_grad():
        output = pipe.unet(latents, 300, encoder_hidden_states=text).sample
    for hook in hooks:
        hook.remove()
    return output, seen


@pytest.fixture
def pipe(tiny_pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    changed = copy.copy(tiny_pipe)
    changed.unet = copy.deepcopy(tiny_pipe.unet)
    return changed


def test_a_smoothed_denoiser_computes_the_same(pipe: StableDiffusionPipeline) -> None:
    inputs = smoothable_inputs(pipe.unet, family_of(pipe))
    readers = [one.readers[0] for one in inputs]
    assert len(inputs) == 6 * sum(name.endswith("attn1") for name, _ in pipe.unet.named_modules()) > 0
    before, seen = inputs_of(pipe, readers)
    extremes = {name: x.abs().flatten(0, -2).amax(0) for name, x in seen.items()}
    smooth_(pipe.unet, inputs, scales_of(pipe, inputs, extremes, 0.5))
    after, smoothed = inputs_of(pipe, readers)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(seen[name], smoothed[name]) for name in readers)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_activations_and_weights_share_the_outliers(pipe: StableDiffusionPipeline, alpha: float) -> None:
    """Equation 4: afterwards max|x_j| = max|x_j|^(1-alpha) max|w_j|^(1-alpha): equal in both for alpha = 0.5."""
    inputs = smoothable_inputs(pipe.unet, family_of(pipe))
    readers = [one.readers[0] for one in inputs]
    seen = inputs_of(pipe, readers)[1]
    extremes = {name: x.abs().flatten(0, -2).amax(0) for name, x in seen.items()}
    weights = {one.readers[0]: largest(pipe, one.readers) for one in inputs}
    smooth_(pipe.unet, inputs, scales_of(pipe, inputs, extremes, alpha))
    now, makers = inputs_of(pipe, readers)[1], {one.maker for one in inputs}
    for one in inputs:
        reader = one.readers[0]
        expected = (extremes[reader] * weights[reader]) ** (1 - alpha)
        torch.testing.assert_close(now[reader].abs().flatten(0, -2).amax(0), expected, rtol=1e-3, atol=1e-4)
        if alpha == 0.5 and makers.isdisjoint(one.readers):  # a maker's rows were scaled since
            torch.testing.assert_close(largest(pipe, one.readers), expected, rtol=1e-3, atol=1e-4)


def test_an_input_without_a_scale_stays_as_it_is(pipe: StableDiffusionPipeline) -> None:
    inputs = smoothable_inputs(pipe.unet, family_of(pipe))
    extremes = {one.readers[0]: torch.full((reader_weight(pipe.unet, one).shape[1],), 9.0) for one in inputs}
    (chosen, scale), *others = scales_of(pipe, inputs, extremes, 0.5).items()
    before = {one.readers[0]: reader_weight(pipe.unet, one) for one in inputs}
    smooth_(pipe.unet, inputs, {chosen: scale})
    changed = {
        one.readers[0] for one in inputs if not torch.equal(reader_weight(pipe.unet, one), before[one.readers[0]])
    }
    assert others
    assert changed == {chosen}


def scales_of(
    pipe: StableDiffusionPipeline, inputs: tuple[SmoothableInput, ...], extremes: dict[str, torch.Tensor], alpha: float
) -> dict[str, torch.Tensor]:
    return {
        one.readers[0]: channel_scale(reader_weight(pipe.unet, one), extremes[one.readers[0]], alpha) for one in inputs
    }


def largest(pipe: StableDiffusionPipeline, readers: tuple[str, ...]) -> torch.Tensor:
    return torch.stack([pipe.unet.get_submodule(name).weight.detach().abs().amax(0) for name in readers]).amax(0)
