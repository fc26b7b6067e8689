"""Which weights a pipeline has: the digest by which images and artifacts are known to belong to it."""

import hashlib

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from bitbrush.network.lazy_weights import state_readers


def model_digest(pipe: DiffusionPipeline) -> str:
    """SHA-256 over the tensors of all networks of the pipeline: their names, dtypes, shapes and bytes, as float32.

    Independent of where the pipeline came from (bundled, folder, hub), of whether it was loaded in float32 or in the
    checkpoint's half precision, and of its scheduler, which belongs to the plan.
    """
    digest = hashlib.sha256()
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, nn.Module):
            for key, read in sorted(state_readers(part).items()):
                tensor = read()
                if tensor.is_floating_point():
                    tensor = tensor.float()
                digest.update(f"{name}/{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
