"""Quantization of the networks beside the denoiser, after it; the denoiser's integers do not depend on them."""

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from bitbrush.methods.recipe import Networks
from bitbrush.methods.state import QuantizationState
from bitbrush.network.layers import LayerSpec
from bitbrush.network.other_networks import (
    QuantizedNetwork,
    autoencoders,
    integer_part,
    text_encoders,
)
from bitbrush.quantization.text_encoders import encoder_specs, quantize_text_encoder, record_calls
from bitbrush.quantization.vae import decoder_specs, quantize_decoder
from bitbrush.timeline.trajectory import call_arguments, join, split

LATENT_PROMPTS = 8
"""Calibration prompts whose final latents calibrate the VAE's decoder."""
LATENTS = "final_latents"
"""Piece of work in the journal."""


def selected_networks(pipe: Any, networks: tuple[Networks, ...]) -> dict[str, nn.Module]:
    """Returns the networks beside the denoiser that a recipe selects, by name.

    Raises:
        ValueError: The pipeline has none of a group.
    """
    found: dict[str, nn.Module] = {}
    for group, parts in ((Networks.TEXT_ENCODERS, text_encoders(pipe)), (Networks.VAE, autoencoders(pipe))):
        if group in networks:
            if not parts:
                raise ValueError(
                    f"networks has {group}, and {type(pipe).__name__} has none; it holds {', '.join(pipe.components)}"
                )
            found |= parts
    return found


def network_specs(state: QuantizationState) -> dict[str, tuple[LayerSpec, ...]]:
    """Lists the layers of every selected network beside the denoiser, without computing anything.

    Raises:
        ValueError: A network cannot be quantized.
    """
    bits, encoders = state.recipe.text_encoder_weights, text_encoders(state.pipe)
    return {
        name: encoder_specs(name, network, bits) if name in encoders else decoder_specs(name, network)
        for name, network in selected_networks(state.pipe, state.recipe.networks).items()
    }


def quantize_text_encoders(state: QuantizationState) -> dict[str, QuantizedNetwork]:
    """Quantizes the text encoders, if the recipe selects them; every process does so for itself.

    Args:
        state: State after the stages of the method.

    Returns:
        Quantized networks by name.
    """
    if Networks.TEXT_ENCODERS not in state.recipe.networks:
        return {}
    encoders, bits = text_encoders(state.pipe), state.recipe.text_encoder_weights
    with state.session.phase(Networks.TEXT_ENCODERS):
        calls = record_calls(state, list(encoders))
        return {
            name: quantize_text_encoder(name, encoder, bits, calls[name], state.session.progress)
            for name, encoder in encoders.items()
        }


def quantize_decoders(state: QuantizationState, quantized: Any) -> dict[str, QuantizedNetwork]:
    """Quantizes the decoder of the VAE, if the recipe selects it, for latents of the quantized pipeline.

    Args:
        state: State after the stages of the method.
        quantized: Pipeline with everything quantized but the VAE.

    Returns:
        Quantized networks by name.
    """
    if Networks.VAE not in state.recipe.networks:
        return {}
    with state.session.phase(Networks.VAE):
        return {
            name: quantize_decoder(name, vae, _final_latents(state, quantized, name), state.session.progress)
            for name, vae in autoencoders(state.pipe).items()
        }


def _final_latents(state: QuantizationState, quantized: Any, name: str) -> list[Tensor]:
    """Returns the inputs of a VAE's decoder for some prompts, from the journal or computed by the first process."""
    piece = f"{LATENTS}_{name}"
    tensors = state.session.journal.read(piece)
    if tensors is None:
        tensors = state.session.ranks.from_first(lambda: _generated_latents(state, quantized, name))
        assert tensors is not None
        state.session.journal.write(piece, tensors)
    return [tensors[key] for key in sorted(tensors)]


def _generated_latents(state: QuantizationState, quantized: Any, name: str) -> dict[str, Tensor]:
    prompts = join(state.batches)[:LATENT_PROMPTS]
    _, decoder = integer_part(getattr(quantized, name))
    denoiser: nn.Module = getattr(quantized, state.family.component)
    latents: list[Tensor] = []
    with ExitStack() as stack:
        for module, hook in (
            (decoder, lambda _, args: latents.extend(args[0].detach().clone().split(1))),
            (denoiser, lambda *_: state.session.count_call()),
        ):
            stack.callback(module.register_forward_pre_hook(hook).remove)
        for batch in split(prompts, state.recipe.batch_size):
            quantized(**call_arguments(quantized, batch, state.recipe.plan), output_type="pt")
    return {f"{index:04}": latent for index, latent in enumerate(latents)}
