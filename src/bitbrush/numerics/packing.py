"""Integers of 2 to 8 bits packed without gaps into bytes."""

import torch
from torch import Tensor


def pack(x_q: Tensor, bits: int) -> Tensor:
    """Packs the low ``bits`` bits of each element into ``ceil(numel * bits / 8)`` bytes.

    The order is little-endian: element i occupies bits ``i * bits`` to ``(i + 1) * bits - 1`` of the stream. So two
    4-bit values share a byte, the first in the low nibble.

    Args:
        x_q: Integers, uint8, any shape.
        bits: Bits per element, 2 to 8.

    Raises:
        ValueError: A value does not fit into ``bits`` bits.
    """
    if bits == 8:
        return x_q.reshape(-1).clone()
    if x_q.numel() and int(x_q.max()) >> bits:
        raise ValueError(f"value {int(x_q.max())} does not fit into {bits} bits")
    if bits == 4:  # large models use 4 bits; the general path would take eight bytes per element
        pairs = torch.nn.functional.pad(x_q.reshape(-1), (0, x_q.numel() % 2)).view(-1, 2)
        return pairs[:, 0] | (pairs[:, 1] << 4)
    planes = (x_q.reshape(-1, 1) >> torch.arange(bits, dtype=torch.uint8)) & 1
    stream = planes.reshape(-1)
    stream = torch.nn.functional.pad(stream, (0, -stream.numel() % 8)).view(-1, 8)
    return (stream << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Unpacks bytes that :func:`pack` wrote.

    Args:
        packed: Bytes, uint8.
        bits: Bits per element.
        shape: Shape of the packed tensor.

    Returns:
        Integers, uint8, of ``shape``.

    Raises:
        ValueError: The length does not fit the shape.
    """
    count = 1
    for size in shape:
        count *= size
    expected = -(-count * bits // 8)
    if packed.numel() != expected:
        raise ValueError(f"{packed.numel()} bytes hold no {shape} of {bits} bits; {expected} are needed")
    if bits == 8:
        return packed.clone().view(shape)
    if bits == 4:
        return torch.stack((packed & 15, packed >> 4), dim=1).view(-1)[:count].reshape(shape)
    stream = (packed.view(-1, 1) >> torch.arange(8, dtype=torch.uint8)) & 1
    planes = stream.reshape(-1)[: count * bits].view(-1, bits)
    return (planes << torch.arange(bits, dtype=torch.uint8)).sum(1, dtype=torch.uint8).view(shape)
