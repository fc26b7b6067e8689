"""Digest of a pipeline's weights, which links images and artifacts to it."""

import hashlib

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from bitbrush.network.lazy_weights import state_readers


def model_digest(pipe: DiffusionPipeline) -> str:
    """Computes the SHA-256 over the tensors of all networks of the pipeline: names, dtypes, shapes and float32 bytes.

    The digest does not depend on the pipeline's origin (bundled, folder, hub), nor on the loaded dtype (float32 or the
    checkpoint's half precision). It ignores the scheduler, which belongs to the plan.
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
