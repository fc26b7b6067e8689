"""Rows: LoRAs by diffusers' own methods. More is in `tests/runtime/test_adapters.py`."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.features.models import call, full
from tests.features.row import RUNTIMES, Section
from tests.runtime.loras import as_diffusers, as_kohya, attention, random_lora

LORAS = Section("LoRAs", "Loaded at run time, beside the integer layers ([how](lora.md)).")
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")


def lora(pipe: Any, seed: int = 0) -> dict[str, Tensor]:
    """Factors for all layers of the U-Net in full precision."""
    smaller = pipe.unet.config.sample_size == 4
    network: nn.Module = full("sd-smaller" if smaller else "sd").unet
    return random_lora(network, strength=0.2, seed=seed)


def of_text(pipe: Any) -> dict[str, Tensor]:
    made = random_lora(pipe.text_encoder, strength=0.2, prefix="text_encoder", layers=lambda n: n.endswith(TEXT_LAYERS))
    return {key.replace("text_encoder.encoder", "text_encoder.text_model.encoder"): x for key, x in made.items()}


@LORAS.row("`load_lora_weights`: linear layers and convolutions")
def _loaded(pipe: Any) -> Tensor:
    pipe.load_lora_weights(lora(pipe))
    return call(pipe)


def of_family(name: str, model: str, component: str) -> None:
    """Declares a row for a LoRA of all attention layers of another architecture."""

    def use(pipe: Any) -> Tensor:
        factors = random_lora(getattr(full(model), component), strength=0.3, prefix=component, layers=attention)
        pipe.load_lora_weights(factors)
        return call(pipe)

    LORAS.row(name, model, slow=True)(use)


of_family("a LoRA of SDXL", "sdxl", "unet")
of_family("a LoRA of Stable Diffusion 3", "sd3", "transformer")
of_family("a LoRA of FLUX", "flux", "transformer")


@LORAS.row("files of kohya's programs", emulated=False, slow=True)
def _kohya(pipe: Any) -> Tensor:
    pipe.load_lora_weights(as_kohya(lora(pipe), alpha=2.0))
    return call(pipe)


@LORAS.row("files of diffusers before PEFT, with the text encoder", emulated=False, slow=True)
def _with_text_encoder(pipe: Any) -> Tensor:
    pipe.load_lora_weights(as_diffusers(lora(pipe) | of_text(pipe)))
    return call(pipe)


@LORAS.row("several, `set_adapters` with weights")
def _several(pipe: Any) -> Tensor:
    for seed, name in enumerate(("first", "second")):
        pipe.load_lora_weights(lora(pipe, seed), adapter_name=name)
    pipe.set_adapters(["first", "second"], [0.7, 0.5])
    return call(pipe)


@LORAS.row("`hotswap=True`", emulated=False, slow=True)
def _swapped(pipe: Any) -> Tensor:
    pipe.load_lora_weights(lora(pipe, 0), adapter_name="style")
    call(pipe)
    pipe.load_lora_weights(lora(pipe, 1), adapter_name="style", hotswap=True)
    return call(pipe)


@LORAS.row("`cross_attention_kwargs={'scale': 0.5}`")
def _scaled(pipe: Any) -> Tensor:
    pipe.load_lora_weights(lora(pipe))
    return call(pipe, cross_attention_kwargs={"scale": 0.5})


@LORAS.row("`disable_lora`, `enable_lora`", emulated=False, slow=True)
def _enabled_again(pipe: Any) -> Tensor:
    pipe.load_lora_weights(lora(pipe))
    pipe.disable_lora()
    pipe.enable_lora()
    return call(pipe)


@LORAS.row("`unload_lora_weights`: the images from before", same=0.0)
def _unloaded(pipe: Any) -> Tensor:
    pipe.load_lora_weights(lora(pipe))
    pipe.unload_lora_weights()
    return call(pipe)


@LORAS.row("`unload_lora_weights` after `pipe.unet.compile()`", "sd-smaller", same=0.0, slow=True)
def _unloaded_compiled(pipe: Any) -> Tensor:
    torch.compiler.reset()
    pipe.unet.compile(backend="eager")
    pipe.load_lora_weights(lora(pipe))
    call(pipe)
    pipe.unload_lora_weights()
    return call(pipe)


@LORAS.row("`delete_adapters`: the images from before", same=0.0, emulated=False, slow=True)
def _deleted(pipe: Any) -> Tensor:
    pipe.load_lora_weights(lora(pipe), adapter_name="style")
    call(pipe)
    pipe.delete_adapters("style")
    return call(pipe)


FUSED = "a LoRA cannot be fused into the integers of a quantized denoiser, and need not be: leave it loaded"


@LORAS.row("`fuse_lora`", refused=dict.fromkeys(RUNTIMES, FUSED))
def _fused(pipe: Any) -> Tensor:
    pipe.load_lora_weights(lora(pipe))
    pipe.fuse_lora()
    return call(pipe)


LOHA = "Invalid LoRA checkpoint. Make sure all LoRA param names contain `'lora'` substring"


@LORAS.row("LoHa and other factors that diffusers does not read", refused=dict.fromkeys(RUNTIMES, LOHA), slow=True)
def _loha(pipe: Any) -> Tensor:
    pipe.load_lora_weights({"lora_unet_mid_block.hada_w1_a".removeprefix("lora_"): torch.ones(2, 2)})
    return call(pipe)
