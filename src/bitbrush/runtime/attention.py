"""Attention of query, key and value tokens, by the fastest exact way that torch has on a CPU."""

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

AttentionKernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""``softmax(q k^T / sqrt(d)) v`` head by head: (N, L, heads d), (N, M, heads d) twice, heads -> (N, L, heads d)."""

QUERIES_PER_CHUNK = 512
FEWEST_KEYS = 512


def torch_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """In chunks where that is faster, by torch's own operator otherwise."""
    if query.dtype == torch.bfloat16 and key.shape[1] >= FEWEST_KEYS:
        return chunked_attention(query, key, value, heads)
    q, k, v = (_by_head(x, heads) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def chunked_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """One head and a few hundred queries at a time, by two products and a softmax.

    The scores of a chunk stay in the cache, and the products are oneDNN's, which multiplies bfloat16 faster than
    torch's fused operator for CPUs does. Scores are rounded to the inputs' dtype in between.
    """
    q, k, v = (_by_head(x, heads) for x in (query, key, value))
    out = query.new_empty(query.shape)
    by_head = _by_head(out, heads)
    scale = q.shape[-1] ** -0.5
    for image in range(len(q)):
        for head in range(heads):
            keys, values = (k[image, head] * scale).t().contiguous(), v[image, head].contiguous()
            for first in range(0, q.shape[2], QUERIES_PER_CHUNK):
                chunk = slice(first, first + QUERIES_PER_CHUNK)
                weights = torch.mm(q[image, head, chunk], keys).softmax(-1)
                by_head[image, head, chunk] = torch.mm(weights, values)
    return out


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(N, L, heads d) as (N, heads, L, d), the same memory."""
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split
