"""Which weights a pipeline has: the digest by which images and artifacts are known to belong to it."""

import hashlib

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn


def model_digest(pipe: DiffusionPipeline) -> str:
    """SHA-256 over the tensors of all networks of the pipeline: their names, dtypes, shapes and bytes.

    Independent of where the pipeline came from (bundled, folder, hub) and of its scheduler, which belongs to the plan.
    """
    digest = hashlib.sha256()
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, nn.Module):
            for key, tensor in sorted(part.state_dict().items()):
                digest.update(f"{name}/{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
