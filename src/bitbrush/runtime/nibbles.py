"""Signed bytes of 4-bit weights stored two in a byte, in the order in which kernels read them."""

from typing import NamedTuple

import torch
from torch import Tensor

NIBBLE = 4
_MOST = (1 << NIBBLE) - 1


class Arrangement(NamedTuple):
    """Order of a weight's bytes: ``blocks`` of rows of ``width`` bytes, then ``rest`` bytes of something else."""

    blocks: int
    width: int
    rest: int = 0


class Nibbles(NamedTuple):
    """Rows of signed bytes; the rows of a block share a zero point per column.

    Attributes:
        packed: (blocks, ceil(rows / 2), width) uint8; row 2r in the low half of each byte, row 2r + 1 in the high half.
        zero_point: (blocks, width) uint8; signed bytes are the halves less these.
        rest: Bytes after the rows, as they are; uint8.
        rows: Rows of a block.
    """

    packed: Tensor
    zero_point: Tensor
    rest: Tensor
    rows: int

    @property
    def nbytes(self) -> int:
        """Number of signed bytes that these expand to."""
        return self.rows * self.zero_point.numel() + len(self.rest)


def to_nibbles(signed: Tensor, arrangement: Arrangement) -> Nibbles | None:
    """Packs signed bytes; None if they are not so arranged that a column of a block spans at most 4 bits.

    Args:
        signed: Bytes (n,) int8.
        arrangement: Their supposed order. Whatever it is, :func:`from_nibbles` returns the same bytes.
    """
    blocks, width, rest = arrangement
    body = len(signed) - rest
    if body <= 0 or body % (blocks * width):
        return None
    rows = signed[:body].view(blocks, -1, width)
    least = rows.amin(1).to(torch.int16).clamp_(max=0)
    if int((rows.amax(1) - least).max()) > _MOST:
        return None
    zero_point = (-least).to(torch.uint8)
    packed = torch.empty(blocks, (rows.shape[1] + 1) // 2, width, dtype=torch.uint8, device=signed.device)
    for block, zero, out in zip(rows, zero_point, packed, strict=True):  # one at a time: temporary copies stay small
        w_q = block.view(torch.uint8) + zero  # modulo 256
        out.copy_(w_q[::2])
        out[: len(w_q) // 2] |= w_q[1::2] << NIBBLE
    return Nibbles(packed, zero_point, signed[body:].view(torch.uint8).clone(), rows.shape[1])


def from_nibbles(nibbles: Nibbles, out: Tensor) -> None:
    """Expands the signed bytes into ``out``, (nbytes,) uint8."""
    packed, zero_point, rest, count = nibbles
    body = out.numel() - len(rest)
    rows = out[:body].view(len(packed), count, -1)
    torch.sub(packed & _MOST, zero_point[:, None], out=rows[:, ::2])
    torch.sub((packed >> NIBBLE)[:, : count // 2], zero_point[:, None], out=rows[:, 1::2])
    out[body:] = rest
