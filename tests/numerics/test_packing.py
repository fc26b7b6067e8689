"""Packed integers: nothing is lost, no bit is wasted, and the layout is the documented one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitbrush.numerics.packing import pack, unpack


def integers(count: int, bits: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1 << bits, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@given(st.integers(2, 8), st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(0, 2**32))
def test_round_trip(bits: int, sizes: list[int], seed: int) -> None:
    shape = tuple(sizes)
    count = torch.Size(shape).numel()
    x_q = integers(count, bits, seed).view(shape)
    packed = pack(x_q, bits)
    assert packed.shape == (-(-count * bits // 8),)
    assert packed.dtype == torch.uint8
    restored = unpack(packed, bits, shape)
    assert restored.dtype == torch.uint8
    assert torch.equal(restored, x_q)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", range(1, 18))
def test_layout_is_a_little_endian_stream(bits: int, count: int) -> None:
    x_q = integers(count, bits)
    stream = sum(int(value) << (i * bits) for i, value in enumerate(x_q))
    assert bytes(pack(x_q, bits).tolist()) == stream.to_bytes(-(-count * bits // 8), "little")


def test_four_bits_lie_two_per_byte_low_nibble_first() -> None:
    assert pack(torch.tensor([0x1, 0x2, 0xF, 0x0, 0x7], dtype=torch.uint8), 4).tolist() == [0x21, 0x0F, 0x07]
    assert unpack(torch.tensor([0x21, 0x0F, 0x07], dtype=torch.uint8), 4, (5,)).tolist() == [1, 2, 15, 0, 7]


def test_strided_weights_are_packed_in_order_of_their_elements() -> None:
    x_q = integers(24, 3).view(4, 6).T
    assert torch.equal(unpack(pack(x_q, 3), 3, (6, 4)), x_q)


def test_eight_bits_share_no_memory() -> None:
    x_q = integers(6, 8)
    packed = pack(x_q, 8)
    packed[0] += 1
    assert torch.equal(x_q, integers(6, 8))
    unpack(packed, 8, (2, 3))[0, 0] += 1
    assert packed[0] == integers(6, 8)[0] + 1


@pytest.mark.parametrize("bits", range(2, 8))
def test_values_too_large_are_refused(bits: int) -> None:
    x_q = torch.tensor([0, 1 << bits], dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"value {1 << bits} does not fit into {bits} bits"):
        pack(x_q, bits)


@pytest.mark.parametrize(("length", "bits"), [(4, 4), (6, 4), (0, 4), (8, 8), (10, 8)])
def test_lengths_that_do_not_fit_are_refused(length: int, bits: int) -> None:
    expected = {4: 5, 8: 9}[bits]
    with pytest.raises(ValueError, match=rf"{length} bytes hold no \(3, 3\) of {bits} bits; {expected} are needed"):
        unpack(torch.zeros(length, dtype=torch.uint8), bits, (3, 3))
