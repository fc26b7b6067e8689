"""The native fused ops against torch's operators: the same integers, but for values on the edge between two."""

import pytest
import torch
from torch import Tensor, nn

from bitbrush.numerics.affine import QParams, quantize
from bitbrush.runtime.fused_ops import Bytes, TorchFusedOps
from bitbrush.runtime.native.build import NativeUnavailable, native_library
from bitbrush.runtime.native.fused_ops import NativeFusedOps

SHAPES = [(2, 32, 6, 6), (2, 4, 7, 5), (1, 36, 3, 9)]
BITS = [4, 8, 10, 16]


@pytest.fixture(scope="module")
def native() -> NativeFusedOps:
    try:
        return NativeFusedOps(native_library())
    except NativeUnavailable as error:
        pytest.skip(str(error))


def integers(x: Bytes) -> Tensor:
    return x.high.int() if x.low is None else 256 * x.high.int() + x.low.int()


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def norm_of(kind: type[nn.Module], *args: int) -> nn.Module:
    norm = kind(*args)
    generator = torch.Generator().manual_seed(1)
    for parameter in norm.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return norm


def assert_alike(ours: Bytes, expected: Bytes) -> None:
    assert (ours.high.shape, ours.high.stride()) == (expected.high.shape, expected.high.stride())
    apart = (integers(ours) - integers(expected)).abs()
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 0.02


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_quantizing_is_the_definition_bit_for_bit(
    shape: tuple[int, ...], dtype: torch.dtype, bits: int, native: NativeFusedOps
) -> None:
    qparams = QParams.from_range(-1.3, 2.7, bits)
    x = random(shape, dtype)
    for fused_ops in (native, TorchFusedOps()):
        assert torch.equal(integers(fused_ops.quantize(x, qparams)), quantize(x.float(), qparams))
        tokens = x.flatten(2).transpose(1, 2)
        assert torch.equal(integers(fused_ops.quantize(tokens, qparams)), quantize(tokens.float(), qparams))
        assert torch.equal(
            integers(fused_ops.quantize(x, qparams, padding=1, upsample=2))[..., 1:-1, 1:-1][..., ::2, ::2],
            quantize(x.float(), qparams),
        )
        border = integers(fused_ops.quantize(x, qparams, padding=2))
        border[..., 2:-2, 2:-2] = qparams.zero_point
        assert (border == qparams.zero_point).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_norms_and_gates(shape: tuple[int, ...], dtype: torch.dtype, bits: int, native: NativeFusedOps) -> None:
    qparams, channels = QParams.from_range(-1.3, 2.7, bits), shape[1]
    x, plain = random(shape, dtype), TorchFusedOps()
    norm = norm_of(nn.GroupNorm, 2, channels)
    for options in ({}, {"padding": 1, "silu": True}, {"silu": True, "add": random(shape[:2], torch.float32, 2)}):
        assert_alike(native.group_norm(x, norm, qparams, **options), plain.group_norm(x, norm, qparams, **options))
    tokens = random((shape[0], 12, channels), dtype)
    assert_alike(native.group_norm(tokens, norm, qparams), plain.group_norm(tokens, norm, qparams))
    norm = norm_of(nn.LayerNorm, channels)
    assert_alike(native.layer_norm(tokens, norm, qparams), plain.layer_norm(tokens, norm, qparams))
    assert_alike(native.geglu(tokens, qparams), plain.geglu(tokens, qparams))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("begin", [1, 7, 16, 29])
def test_some_channels_are_those_of_all(begin: int, dtype: torch.dtype, bits: int, native: NativeFusedOps) -> None:
    """Bit for bit, with statistics of groups that lie on both sides; a border of their own."""
    qparams, norm = QParams.from_range(-1.3, 2.7, bits), norm_of(nn.GroupNorm, 2, 30)
    x, add = random((2, 30, 5, 7), dtype), random((2, 30), torch.float32, 2)
    for fused_ops in (native, TorchFusedOps()):
        for options in ({}, {"padding": 1, "silu": True}, {"silu": True, "add": add}):
            parts = [
                fused_ops.group_norm(x, norm, qparams, **options, channels=part)
                for part in (slice(0, begin), slice(begin, None))
            ]
            whole = integers(fused_ops.group_norm(x, norm, qparams, **options))
            assert torch.equal(torch.cat([integers(part) for part in parts], 1), whole)
            assert all(part.high.is_contiguous(memory_format=torch.channels_last) for part in parts)
        tokens = random((2, 12, 30), dtype)
        part = fused_ops.group_norm(tokens, norm, qparams, channels=slice(begin, None))
        assert torch.equal(integers(part), integers(fused_ops.group_norm(tokens, norm, qparams))[..., begin:])


def test_neither_batch_nor_threads_change_a_bit(native: NativeFusedOps) -> None:
    qparams, norm = QParams.from_range(-3, 3, 16), norm_of(nn.GroupNorm, 4, 32)
    x = random((3, 32, 20, 20), torch.float32)
    together = integers(native.group_norm(x, norm, qparams, silu=True))
    alone = [integers(native.group_norm(x[i : i + 1], norm, qparams, silu=True)) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))
    torch.set_num_threads(2)
    try:
        assert torch.equal(integers(native.group_norm(x, norm, qparams, silu=True)), together)
    finally:
        torch.set_num_threads(1)
