"""Attention against its definition in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitbrush.runtime.attention import (
    QUERIES_PER_CHUNK,
    AttentionKernel,
    KernelAttention,
    chunked_attention,
    torch_attention,
)
from bitbrush.runtime.native.attention import native_attention
from bitbrush.runtime.native.build import native_library


def by_definition(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    q, k, v = (x.double().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def assert_defined(y: Tensor, query: Tensor, key: Tensor, value: Tensor, heads: int, *, roundings: int = 2) -> None:
    """Compares ``y`` with the definition: off by so many ``roundings`` to its dtype at most, as a norm.

    Roundings are relative to the summands, not to a sum of many that nearly cancel: hence the values' magnitudes.
    By default two, that of each softmax weight and that of the output.
    """
    expected, summands = (by_definition(query, key, v, heads) for v in (value, value.abs()))
    unit = torch.finfo(y.dtype).eps / 2
    assert (y.double() - expected).norm() <= roundings * unit * summands.norm()


# In float32, a score's rounding and that of the exponential are as large as those two.
@pytest.mark.parametrize(("dtype", "roundings"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("queries", [1, QUERIES_PER_CHUNK, QUERIES_PER_CHUNK + 7])
@pytest.mark.parametrize("keys", [1, 77, 600])
def test_equals_the_definition(queries: int, keys: int, dtype: torch.dtype, roundings: int) -> None:
    generator = torch.Generator().manual_seed(0)
    fused = torch.randn(2, max(queries, keys), 3 * 24, generator=generator).to(dtype)
    q, k, v = fused[:, :queries, :24], fused[:, :keys, 24:48], fused[:, :keys, 48:]
    for attention in (torch_attention, chunked_attention):
        y = attention(q, k, v, 3)
        assert y.dtype == dtype
        assert_defined(y, q, k, v, 3, roundings=roundings)


@pytest.fixture(scope="module")
def native() -> AttentionKernel:
    kernel = native_attention(native_library())
    if kernel is torch_attention:
        pytest.skip("the kernel is not for this processor")
    return kernel


@pytest.mark.parametrize("queries", [1, 32, 100])
@pytest.mark.parametrize("keys", [1, 2, 77, 96, 97, 200])
@pytest.mark.parametrize(("heads", "width"), [(3, 2), (2, 24), (1, 40), (2, 64), (1, 160)])
def test_native_equals_the_definition(native: AttentionKernel, heads: int, width: int, queries: int, keys: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        (3 * torch.randn(2, length, heads * width, generator=generator)).bfloat16() for length in (queries, keys, keys)
    )
    y = native(q, k, v, heads)
    assert y.dtype == torch.bfloat16
    assert_defined(y, q, k, v, heads)


def test_native_survives_scores_of_any_size(native: AttentionKernel) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 300, 8, generator=generator).bfloat16() for _ in range(3))
    for factor in (1e-6, 1e6):
        assert_defined(native(q * factor, k * factor, v, 1), q * factor, k * factor, v, 1)


def test_native_keeps_what_is_not_a_number(native: AttentionKernel) -> None:
    q, k, v = (torch.ones(1, 40, 8, dtype=torch.bfloat16) for _ in range(3))
    q[0, 7, 3] = torch.nan
    y = native(q, k, v, 1)
    assert y[0, 7].isnan().all()
    assert y[0, :7].eq(1).all()
    assert y[0, 8:].eq(1).all()


def test_native_is_the_same_for_any_threads_and_batch(native: AttentionKernel) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 150, 48, generator=generator).bfloat16() for _ in range(3))
    whole = native(q, k, v, 2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([native(q[i : i + 1], k[i : i + 1], v[i : i + 1], 2) for i in range(3)])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(whole, alone)


def test_what_the_kernel_is_not_made_for_is_torchs(native: AttentionKernel) -> None:
    generator = torch.Generator().manual_seed(0)
    wide, odd = torch.randn(1, 9, 8, generator=generator), torch.randn(1, 9, 6, generator=generator).bfloat16()
    assert torch.equal(native(wide, wide, wide, 2), torch_attention(wide, wide, wide, 2))
    assert torch.equal(native(odd, odd, odd, 2), torch_attention(odd, odd, odd, 2))


class Counted:
    """A kernel that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        self.calls += 1
        return torch_attention(query, key, value, heads)


def test_the_kernel_stands_for_torchs_operator_while_entered() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator).bfloat16() for n in (5, 9, 9))
    kernel, expected = Counted(), F.scaled_dot_product_attention(q, k, v)
    with KernelAttention(kernel):
        plain = F.scaled_dot_product_attention(q, k, v)
        named = F.scaled_dot_product_attention(query=q, key=k, value=v, scale=8**-0.5, dropout_p=0.0)
    assert kernel.calls == 2
    for y in (plain, named):
        assert y.shape == expected.shape
        torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)
    F.scaled_dot_product_attention(q, k, v)
    assert kernel.calls == 2


def test_other_calls_are_torchs() -> None:
    q, k = torch.randn(1, 4, 5, 8).bfloat16(), torch.randn(1, 2, 5, 8).bfloat16()
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    others = (
        (q, q, q, {"attn_mask": mask}),
        (q, q, q, {"is_causal": True}),
        (q, q, q, {"scale": 1.0}),
        (q, k, k, {"enable_gqa": True}),
        (q.float(), q.float(), q.float(), {}),
        (q[0], q[0], q[0], {}),
    )
    kernel = Counted()
    expected = [F.scaled_dot_product_attention(a, b, c, **options) for a, b, c, options in others]
    with KernelAttention(kernel):
        found = [F.scaled_dot_product_attention(a, b, c, **options) for a, b, c, options in others]
    assert kernel.calls == 0
    assert all(map(torch.equal, found, expected))
