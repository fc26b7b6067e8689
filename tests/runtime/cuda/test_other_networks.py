"""Networks that run once per image, by the CUDA runtime: a VAE's decoder in integers, text encoders emulated."""

import copy
from typing import Any

import torch
from torch import nn

from bitbrush.network.other_networks import Embeddings, round_embeddings
from bitbrush.network.packed_weight import PackedLayer
from bitbrush.quantization.text_encoders import Call, quantize_text_encoder
from bitbrush.quantization.vae import quantize_decoder
from bitbrush.runtime.choose import Choice
from bitbrush.runtime.cuda.layers import IntegerLayer
from bitbrush.runtime.cuda.runtime import CudaRuntime
from bitbrush.runtime.lowered import lower_network, lowered_of
from bitbrush.runtime.reference import ReferenceRuntime
from bitbrush.session.progress import silent
from tests.artifact.pipelines import t5, vae


def lowered(network: nn.Module, runtime: Any, quantized: Any) -> Any:
    made = copy.deepcopy(network)
    lower_network(made, Choice(runtime, "asked for"), quantized.layers, quantized.embeddings)
    return made


@torch.no_grad()
def test_a_decoder_is_computed_in_integers(device: torch.device) -> None:
    own: Any = vae()
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    quantized = quantize_decoder("vae", own, list(latents.split(1)), silent)
    ours = lowered(own, CudaRuntime(device, torch.float32), quantized)
    assert sum(isinstance(module, IntegerLayer) for module in ours.decoder.modules()) == len(quantized.layers)
    expected = lowered(own, ReferenceRuntime(), quantized).decoder(latents)
    assert (ours.decoder(latents) - expected).norm() < 1e-3 * expected.norm()


@torch.no_grad()
def test_a_text_encoder_is_emulated_and_stays_packed(device: torch.device) -> None:
    own = t5(16)["model"]
    tokens = torch.arange(2, 12).view(2, 5)
    quantized = quantize_text_encoder("text_encoder", own, 4, [Call((tokens,), {})], silent)
    assert quantized.embeddings.tied == {"encoder.embed_tokens": "shared"}
    assert round_embeddings(nn.Linear(2, 2)) == Embeddings()
    ours = lowered(own, CudaRuntime(device, torch.float32), quantized)
    assert all(isinstance(module, PackedLayer) for module in ours.modules() if isinstance(module, nn.Linear))
    executions = lowered_of(ours)
    assert executions is not None
    assert all(one.fallback is not None for one in executions.executions)
    expected = lowered(own, ReferenceRuntime(), quantized)(tokens)[0]
    given = ours(tokens.to(device))[0]
    assert given.dtype == torch.float32
    assert (given.cpu() - expected).norm() < 1e-3 * expected.norm()
