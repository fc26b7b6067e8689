"""Rows: devices, types, offloading, compilation, copies and threads. Images stay as they are."""

import copy
import tempfile
import threading
from functools import partial
from typing import Any

import accelerate
import torch
from torch import Tensor

from tests.features.additions import around
from tests.features.models import call
from tests.features.row import INTEGERS, RUNTIMES, Section

MOVEMENT = Section(
    "Movement",
    "The CPU stands for the GPU that offloading computes on. On `onednn` and `cuda` the denoiser stays there.",
)
CPU = torch.device("cpu")
row = partial(MOVEMENT.row, same=0.0)
STAYS = dict.fromkeys(INTEGERS, "the layers of a quantized denoiser stay on")


@row("`.to(device)`")
def _to_device(pipe: Any) -> Tensor:
    return call(pipe.to(CPU))


def answer(pipe: Any) -> Tensor:
    """Returns the denoiser's own answer to float32 arguments."""
    generator = torch.Generator().manual_seed(0)
    size = pipe.unet.config.sample_size
    x, text = torch.randn(1, 4, size, size, generator=generator), torch.randn(1, 7, 16, generator=generator)
    with torch.no_grad():
        y: Tensor = pipe.unet(x, 500, text).sample
    return y


@row("`.to(dtype)`: the other networks are cast, the denoiser's numbers stay", without=answer)
def _to_dtype(pipe: Any) -> Tensor:
    pipe.to(torch.bfloat16)
    assert pipe.vae.dtype == torch.bfloat16
    assert call(pipe).isfinite().all()
    return answer(pipe)


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


@row("`accelerate.dispatch_model` to one device")
def _dispatched(pipe: Any) -> Tensor:
    accelerate.dispatch_model(pipe.unet, {"": "cpu"})
    return call(pipe)


@row("`accelerate.dispatch_model(force_hooks=True)`", refused=STAYS)
def _dispatched_with_hooks(pipe: Any) -> Tensor:
    accelerate.dispatch_model(pipe.unet, {"": "cpu"}, force_hooks=True)
    return call(pipe)


@row("`accelerate.dispatch_model` of blocks", refused=STAYS, slow=True)
def _dispatched_blocks(pipe: Any) -> Tensor:
    places = dict.fromkeys((name for name, _ in pipe.unet.named_children()), "cpu")
    accelerate.dispatch_model(pipe.unet, places, force_hooks=True)
    return call(pipe)


@row("offloading to disk", refused=STAYS, slow=True)
def _disk_offload(pipe: Any) -> Tensor:
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


@row("`enable_layerwise_casting`", refused=dict.fromkeys(RUNTIMES, STORED))
def _layerwise_casting(pipe: Any) -> Tensor:
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    return call(pipe)


@row("`fuse_qkv_projections`", refused=dict.fromkeys(RUNTIMES, JOINED))
def _joined_projections(pipe: Any) -> Tensor:
    pipe.fuse_qkv_projections()
    return call(pipe)


@row("attention slicing", emulated=False, same=1e-2)
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


@row("`torch.compile(pipe.unet)`", "sd-smaller")
def _compiled(pipe: Any) -> Tensor:
    torch.compiler.reset()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    return call(pipe)


@row("`compile_repeated_blocks`", "sd-smaller")
def _compiled_blocks(pipe: Any) -> Tensor:
    torch.compiler.reset()
    pipe.unet.compile_repeated_blocks(backend="eager")
    return call(pipe)


@row("`pipe.unet.compile()`", "sd-smaller")
def _compiled_in_place(pipe: Any) -> Tensor:
    torch.compiler.reset()
    pipe.unet.compile(backend="eager")
    return call(pipe)


TRACED = {runtime: f"torch does not trace the kernels of the {runtime} runtime" for runtime in ("reference", "onednn")}


@row("`compile_repeated_blocks(fullgraph=True)`", "sd-smaller", refused=TRACED)
def _traced_blocks(pipe: Any) -> Tensor:
    pipe.unet.compile_repeated_blocks(backend="eager", fullgraph=True)
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
    own = [around("StableDiffusionPipeline", pipe, scheduler=copy.deepcopy(pipe.scheduler)) for _ in range(3)]
    results: list[Tensor] = []
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
