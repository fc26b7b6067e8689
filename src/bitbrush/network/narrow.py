"""Narrowest dtype that stores a network's numbers without loss."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bitbrush.network.lazy_weights import HALF, count_lazy_weights, state_readers


def lossless_type(tensors: Iterable[Tensor]) -> torch.dtype:
    """Returns float16, else bfloat16, if it represents every float32 number exactly; float32 otherwise.

    The numbers of a half-precision checkpoint stay so, whatever dtype they were loaded in.
    """
    candidates = list(HALF)
    for tensor in tensors:
        if tensor.dtype == torch.float32:
            candidates = [dtype for dtype in candidates if torch.equal(tensor.to(dtype).float(), tensor)]
        if not candidates:
            break
    return candidates[0] if candidates else torch.float32


def float32_bytes(network: nn.Module) -> int:
    """Returns the size of all parameters in float32, regardless of their current type."""
    return 4 * (sum(parameter.numel() for parameter in network.parameters()) + count_lazy_weights(network))


def saving_bytes(networks: Iterable[tuple[int, int]], others: int) -> int:
    """Returns the bytes that a disk needs to save networks one after another, and ``others`` bytes at the end.

    Args:
        networks: Bytes of each in float32, which are written first, and in its lossless dtype, which replaces it.
        others: Bytes that are written last.
    """
    finished, most = 0, 0
    for wide, narrow in networks:
        most = max(most, finished + wide + (narrow if narrow < wide else 0))
        finished += narrow
    return max(most, finished + others)


def narrow_bytes(network: nn.Module) -> int:
    """Returns the bytes of the network's tensors in their lossless dtype."""
    dtype = lossless_type(read() for read in state_readers(network).values())
    tensors = network.state_dict().values()
    floats = sum(tensor.numel() for tensor in tensors if tensor.dtype == torch.float32)
    others = sum(int(tensor.nbytes) for tensor in tensors if tensor.dtype != torch.float32)
    size: int = dtype.itemsize * (count_lazy_weights(network) + floats) + others
    return size
