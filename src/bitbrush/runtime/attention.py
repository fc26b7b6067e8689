"""Attention of query, key and value tokens, by the fastest exact kernel at hand."""

from collections.abc import Callable
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor

AttentionKernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""``softmax(q k^T / sqrt(d)) v`` head by head: (N, L, heads d), (N, M, heads d) twice, heads -> (N, L, heads d)."""


def torch_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """By torch's own operator."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
