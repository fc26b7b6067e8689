"""Attention against its definition in float64."""

import pytest
import torch
from torch import Tensor

from bitbrush.runtime.attention import QUERIES_PER_CHUNK, chunked_attention, torch_attention


def by_definition(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    q, k, v = (x.double().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("queries", [1, QUERIES_PER_CHUNK, QUERIES_PER_CHUNK + 7])
@pytest.mark.parametrize("keys", [1, 77, 600])
def test_equals_the_definition(queries: int, keys: int, dtype: torch.dtype, bound: float) -> None:
    generator = torch.Generator().manual_seed(0)
    fused = torch.randn(2, max(queries, keys), 3 * 24, generator=generator).to(dtype)
    q, k, v = fused[:, :queries, :24], fused[:, :keys, 24:48], fused[:, :keys, 48:]
    expected = by_definition(q, k, v, 3)
    for attention in (torch_attention, chunked_attention):
        y = attention(q, k, v, 3)
        assert y.dtype == dtype
        assert (y.double() - expected).norm() <= bound * expected.norm()
