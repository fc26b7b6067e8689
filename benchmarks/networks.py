"""Text encoders and VAE of a pipeline: what their types and integers cost in quality, and how fast a VAE decodes.

    python benchmarks/networks.py quality [MODEL]
    python benchmarks/networks.py speed [--latents 64] [--rounds 3]

``quality`` compares images of a full-precision denoiser, decoded from the same noise, whose text encoders or VAE alone
are changed; PSNR is of 8-bit images. ``speed`` times the decoder of Stable Diffusion 1.5's VAE, of random weights, in
interleaved rounds; it prints the medians, and the medians of the ratios within a round.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

import bitbrush
from bitbrush.artifact.network import network_tensors
from bitbrush.network.lazy_weights import shallow_copy
from bitbrush.network.narrow import narrow_bytes
from bitbrush.network.other_networks import QuantizedNetwork
from bitbrush.network.own_dtype import compute_in_bfloat16, set_channels_last_
from bitbrush.quantization.vae import quantize_decoder
from bitbrush.runtime.choose import runtime_named
from bitbrush.runtime.lowered import lower_network
from bitbrush.session.progress import silent
from bitbrush.sources.prompts import calibration_prompts

SD15_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
}
STEPS, PROMPTS, MEASURED = 20, 16, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "speed"])
    parser.add_argument("model", nargs="?", default="emoji-sd")
    parser.add_argument("--latents", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.what == "quality":
        measure_quality(options.model)
    else:
        measure_speed(options.latents, options.rounds)


def measure_quality(model: str) -> None:
    pipe, texts = bitbrush.load_full_precision(model), calibration_prompts(None, model)
    pipe.set_progress_bar_config(disable=True)
    calibration, prompts = texts[:PROMPTS], texts[PROMPTS : PROMPTS + MEASURED]
    expected = images(pipe, prompts)
    for name, changed in variants(pipe, calibration):
        other = copy.copy(pipe)
        for key, network in changed.items():
            setattr(other, key, network)
        squared = ((images(other, prompts) - expected) ** 2).mean(axis=(1, 2, 3))
        psnr = -10 * np.log10(squared)
        print(f"{name}: PSNR {psnr.mean():.1f} dB on average, {psnr.min():.1f} at least", flush=True)
        for key, network in changed.items():
            if key.startswith("text_encoder"):
                print(f"  {key}: cosine {cosine(pipe, network, prompts):.5f}")


def variants(pipe: Any, calibration: Any) -> Any:
    """Yields a name and the changed networks of each way to compute text encoder and VAE."""
    for key in ("vae", "text_encoder"):
        narrow = copy.deepcopy(getattr(pipe, key))
        compute_in_bfloat16(narrow)
        yield f"{key} in bfloat16", {key: narrow}
    for bits in (8, 4):
        keys = {"networks": "denoiser,text_encoders,vae", "text_encoder_weights": bits, "method": "dynamic"}
        made = bitbrush.quantize(pipe, calibration, {**keys, "steps": STEPS, "num_prompts": PROMPTS})
        for name, quantized in made.networks.items():
            if name != "vae" or bits == 8:
                report_bytes(name, getattr(pipe, name), quantized)
                lowered = shallow_copy(getattr(pipe, name))
                lower_network(lowered, runtime_named("onednn"), quantized.layers, quantized.embeddings)
                yield f"{name} with {bits}-bit weights on onednn", {name: lowered}


def report_bytes(name: str, network: nn.Module, quantized: QuantizedNetwork) -> None:
    packed = sum(tensor.nbytes for tensor in network_tensors(network, quantized).values())
    half = 2 * sum(parameter.numel() for parameter in network.parameters())
    own = packed / narrow_bytes(network)
    print(f"{name}: {packed} bytes, {packed / half:.3f} of half precision, {own:.3f} of its own type")


def images(pipe: Any, prompts: Any) -> Any:
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    made = pipe(list(prompts), num_inference_steps=STEPS, generator=generators, output_type="np").images
    return np.round(made * 255) / 255


@torch.no_grad()
def cosine(pipe: Any, encoder: Any, prompts: Any) -> float:
    tokens = pipe.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
    return float(F.cosine_similarity(encoder(tokens)[0], pipe.text_encoder(tokens)[0], dim=-1).mean())


@torch.no_grad()
def measure_speed(latents: int, rounds: int) -> None:
    torch.manual_seed(0)
    vae: Any = AutoencoderKL(**SD15_VAE).eval()
    quantized = quantize_decoder("vae", vae, list(torch.randn(2, 4, 16, 16).split(1)), silent)
    ours = shallow_copy(vae)
    lower_network(ours, runtime_named("onednn"), quantized.layers, quantized.embeddings)
    last, half = copy.deepcopy(vae), copy.deepcopy(vae)
    set_channels_last_(last)
    set_channels_last_(half)
    compute_in_bfloat16(half)
    z = torch.randn(1, 4, latents, latents)
    subjects = {"fp32": vae, "fp32, channels-last": last, "bf16, channels-last": half, "W8A8, onednn": ours}
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for one in subjects.values():
        one.decode(z)
    for _ in range(rounds):
        for name, one in subjects.items():
            seconds[name].append(timed(one.decode, z))
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds["fp32"], own, strict=True))
        of_half = statistics.median(a / b for a, b in zip(seconds["bf16, channels-last"], own, strict=True))
        print(f"{name}: {statistics.median(own):.2f} s, x fp32 {ratio:.2f}, x bf16 {of_half:.2f}")


def timed(decode: Callable[[Tensor], Any], z: Tensor) -> float:
    begin = time.perf_counter()
    decode(z)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
