"""Attention over query, key and value tokens, by the fastest exact method that torch has on a CPU."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

AttentionKernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""``softmax(q k^T / sqrt(d)) v`` per head: (N, L, heads d), (N, M, heads d) twice, heads -> (N, L, heads d)."""

QUERIES_PER_CHUNK = 512
FEWEST_KEYS = 512


def torch_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Computes attention in chunks for bfloat16 and many keys, otherwise by torch's fused operator.

    Args:
        query: (N, L, heads d).
        key: (N, M, heads d).
        value: (N, M, heads d).
        heads: Number of heads.

    Returns:
        (N, L, heads d) in the dtype of ``query``.
    """
    if query.dtype == torch.bfloat16 and key.shape[1] >= FEWEST_KEYS:
        return chunked_attention(query, key, value, heads)
    q, k, v = (_by_head(x, heads) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def chunked_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Computes attention per head and chunk of queries, by two matrix products and a softmax.

    The scores of a chunk stay in the cache. The products are oneDNN's, which multiplies bfloat16 faster than torch's
    fused operator for CPUs does. Scores are rounded to the dtype of the inputs between the products.

    Args:
        query: (N, L, heads d).
        key: (N, M, heads d).
        value: (N, M, heads d).
        heads: Number of heads.

    Returns:
        (N, L, heads d) in the dtype of ``query``.
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


class KernelAttention(TorchFunctionMode):
    """Computes the attention of any network's code by ``kernel`` while entered, for bfloat16 on a CPU.

    Calls with a mask, grouped heads or another option are torch's.
    """

    def __init__(self, kernel: AttentionKernel) -> None:
        super().__init__()
        self._kernel = kernel

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replaces ``scaled_dot_product_attention`` alone."""
        named = kwargs or {}
        if func is F.scaled_dot_product_attention and _is_plain(*args, **named):
            return self._attention(*args[:3], **{name: named[name] for name in QKV if name in named})
        return func(*args, **named)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads = query.shape[1]
        q, k, v = (x.transpose(1, 2).flatten(2) for x in (query, key, value))
        return _by_head(self._kernel(q, k, v, heads), heads)


QKV = ("query", "key", "value")


def _is_plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002 - torch's signature
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> bool:
    """Returns whether a call of torch's operator is plain attention of bfloat16 tokens, (N, heads, tokens, d)."""
    plain = attn_mask is None and not dropout_p and not is_causal and not enable_gqa
    usual = scale is None or scale == query.shape[-1] ** -0.5
    same = query.dim() == 4 and query.shape[:2] == key.shape[:2] and query.shape[-1] == value.shape[-1]
    return plain and usual and same and query.dtype == torch.bfloat16 and query.device.type == "cpu"


def _by_head(x: Tensor, heads: int) -> Tensor:
    """Views (N, L, heads d) as (N, heads, L, d); both share memory."""
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split
