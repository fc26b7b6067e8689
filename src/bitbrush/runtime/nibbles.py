"""Storage of integers of up to 4 bits, two in a byte."""

import torch
import torch.nn.functional as F
from torch import Tensor

NIBBLE = 4


def to_nibbles(w_q: Tensor) -> Tensor:
    """Packs rows of integers below 16, two in a byte, the first in the low half; each row starts a new byte."""
    if w_q.shape[1] % 2:
        w_q = F.pad(w_q, (0, 1))
    return w_q[:, ::2] | (w_q[:, 1::2] << NIBBLE)


def from_nibbles(nibbles: Tensor, zero_point: Tensor, columns: int) -> Tensor:
    """Inverts :func:`to_nibbles` and subtracts the zero point of each row; int8."""
    w_q = torch.stack((nibbles & 15, nibbles >> NIBBLE), dim=2).view(len(nibbles), -1)[:, :columns]
    return w_q.to(torch.int8) - zero_point.to(torch.int8)[:, None]
