"""Rows: devices, types, offloading, compilation, copies and threads. Images stay as they are."""

import copy
import threading
from functools import partial
from typing import Any

import accelerate
import torch
from torch import Tensor

from tests.features.additions import around
from tests.features.models import call
from tests.features.row import INTEGERS, Section

MOVEMENT = Section(
    "Movement", "The CPU stands for the GPU that offloading computes on. On `onednn` and `cuda` the denoiser stays there."
)
CPU = torch.device("cpu")
row = partial(MOVEMENT.row, same=True)
STAYS = dict.fromkeys(INTEGERS, "the layers of a quantized denoiser stay on")


@row("`.to(device)`")
def _to_device(pipe: Any) -> Tensor:
    return call(pipe.to(CPU))


@row("`.to(device)` of a block", refused=dict.fromkeys(INTEGERS, "Integer"))
def _block_to_device(pipe: Any) -> Tensor:
    block = pipe.unet.up_blocks[0].attentions[0].transformer_blocks[0].attn1
    block.to("meta")
    block.to_empty(device=CPU)
    raise ValueError("the reference runtime moves its values: they are lost on the device meta")


@row("`.to(dtype)` of what is not integer: the denoiser's answer", emulated=False)
def _to_dtype(pipe: Any) -> Tensor:
    text, empty = pipe.encode_prompt("a cat", CPU, 1, True)
    pipe.to(torch.float64)
    pipe.unet.double()
    return call(pipe, prompt=None, prompt_embeds=text, negative_prompt_embeds=empty)


@row("`enable_model_cpu_offload`")
def _model_offload(pipe: Any) -> Tensor:
    pipe.enable_model_cpu_offload(device="cpu")
    return call(pipe)


@row("`enable_model_cpu_offload`, taken back")
def _no_model_offload(pipe: Any) -> Tensor:
    pipe.enable_model_cpu_offload(device="cpu")
    call(pipe)
    pipe.remove_all_hooks()
    return call(pipe)


@row("`enable_sequential_cpu_offload`", refused=STAYS)
def _sequential_offload(pipe: Any) -> Tensor:
    for network in (pipe.text_encoder, pipe.unet, pipe.vae):  # as the method does for a device with an index
        accelerate.cpu_offload(network, CPU)
    return call(pipe)


@row("offloading to disk", refused=STAYS)
def _disk_offload(pipe: Any) -> Tensor:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        accelerate.disk_offload(pipe.unet, folder, CPU)
        return call(pipe)


@row("`enable_group_offload`", refused=STAYS)
def _group_offload(pipe: Any) -> Tensor:
    pipe.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")
    return call(pipe)


@row("`enable_group_offload(exclude_modules=['unet'])`")
def _group_offload_of_others(pipe: Any) -> Tensor:
    pipe.enable_group_offload(
        onload_device=CPU, offload_device=CPU, offload_type="leaf_level", exclude_modules=["unet"]
    )
    return call(pipe)


STORED = "a quantized denoiser's weights are not stored in another dtype"
JOINED = "the projections of a quantized denoiser cannot be joined"


@row("`enable_layerwise_casting`", refused=dict.fromkeys(("reference", *INTEGERS), STORED))
def _layerwise_casting(pipe: Any) -> Tensor:
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    return call(pipe)


@row("`fuse_qkv_projections`", refused=dict.fromkeys(("reference", *INTEGERS), JOINED))
def _joined_projections(pipe: Any) -> Tensor:
    pipe.fuse_qkv_projections()
    return call(pipe)


@row("attention slicing", emulated=False, same=False, tolerance=1.1)
def _attention_slicing(pipe: Any) -> Tensor:
    pipe.enable_attention_slicing(1)
    return call(pipe)


def image(pipe: Any) -> Tensor:
    return call(pipe, output_type="pt")


@row("slicing and tiling of the VAE", without=image, emulated=False)
def _vae_tiling(pipe: Any) -> Tensor:
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()
    return image(pipe)


@row("`torch.compile(pipe.unet)`", emulated=False)
def _compiled(pipe: Any) -> Tensor:
    torch.compiler.reset()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    return call(pipe)


@row("`compile_repeated_blocks`", emulated=False)
def _compiled_blocks(pipe: Any) -> Tensor:
    torch.compiler.reset()
    pipe.unet.compile_repeated_blocks(backend="eager")
    return call(pipe)


@row("`torch.inference_mode`")
def _inference_mode(pipe: Any) -> Tensor:
    with torch.inference_mode():
        return call(pipe).clone()


@row("`copy.deepcopy(pipe)`")
def _copied(pipe: Any) -> Tensor:
    copied = copy.deepcopy(pipe)
    del pipe
    return call(copied)


@row("threads that share the networks", emulated=False)
def _threads(pipe: Any) -> Tensor:
    call(pipe)  # transformers makes some of an encoder in its first call
    own = [around("StableDiffusionPipeline", pipe, scheduler=None) for _ in range(3)]
    results: list[Tensor] = []
    for one in own:
        one.scheduler = copy.deepcopy(pipe.scheduler)
    text, empty = pipe.encode_prompt("a cat", CPU, 1, True)
    embeds = {"prompt": None, "prompt_embeds": text, "negative_prompt_embeds": empty}
    threads = [threading.Thread(target=lambda one=one: results.append(call(one, **embeds))) for one in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert all(torch.equal(result, results[0]) for result in results)
    return results[0]


@row("two artifacts in a process, in turns", emulated=False)
def _two_artifacts(pipe: Any) -> Tensor:
    other = copy.deepcopy(pipe)
    other.unet.enable_freeu(s1=0.2, s2=0.2, b1=1.6, b2=1.6)
    steps: list[Tensor] = []

    def between(_: Any, __: int, ___: Any, values: dict[str, Any]) -> dict[str, Any]:
        steps.append(call(other))
        return values

    result = call(pipe, callback_on_step_end=between)
    assert not any(torch.equal(step, result) for step in steps)
    return result
