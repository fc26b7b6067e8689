"""Sums at the limit of int32: none may leave it on the way, for some GPUs wrap there and others saturate.

In the interpreter every sum is checked after each instruction (``conftest.py``); on a GPU results are compared alone.
"""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from bitbrush.network.layers import QuantizedLayer
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.weights import QuantizedWeight, WeightQParams
from bitbrush.runtime.cuda.fused_ops import CudaFusedOps
from bitbrush.runtime.cuda.layers import IntegerLinear
from bitbrush.runtime.cuda.steps import Steps
from bitbrush.runtime.cuda.weights import Weights, lay_out
from bitbrush.runtime.integers import MOST_PRODUCTS
from bitbrush.timeline.schedule import ActivationSchedule

PLAIN, RELAXED = 900.0, 100.0
MOST_BITS = 16
SDXL = 1280 * 9  # columns of its largest 3x3 convolutions


def largest_in_32_bits(bits: int, weight: int) -> int:
    """Number of columns of this weight up to which sums fit into 32 bits, or as many as a layer may have."""
    return min((2**31 - 1) // (((1 << bits) - 1) * abs(weight)), MOST_PRODUCTS)


CASES = {
    **{f"{w} {bits} bits": (w, bits, SDXL) for bits in (8, 10) for w in (10, -10, 127, -128)},
    **{f"limit {bits} bits": (-128, bits, largest_in_32_bits(bits, -128)) for bits in range(9, MOST_BITS + 1)},
    **{f"beyond {bits} bits": (-128, bits, largest_in_32_bits(bits, -128) + 1) for bits in (10, 12, 15, 16)},
    "16 bits": (10, 16, SDXL),
}
"""Weight, activation bits and columns."""


def layer_of(signed: Tensor, all_qparams: dict[float, QParams], steps: Steps, ops: ModuleType) -> IntegerLinear:
    filters, columns = signed.shape
    qparams = WeightQParams(torch.ones(filters), torch.full((filters,), 128, dtype=torch.uint8), 8)
    weight = QuantizedWeight((signed + 128).to(torch.uint8), qparams)
    schedule = ActivationSchedule.of(all_qparams)
    layer = QuantizedLayer("layer", weight, None, schedule)
    weights = lay_out(layer, signed.to(torch.int8), steps.device, nibbles=False)
    return IntegerLinear(columns, weights, steps.qparams(schedule), CudaFusedOps(ops))


@pytest.mark.parametrize("zero_point", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("case", list(CASES))
def test_no_sum_leaves_int32_on_the_way(case: str, zero_point: float, ops: ModuleType, device: torch.device) -> None:
    """Activations at both ends and between, weights of one sign and of both, one byte and two in one schedule."""
    weight, bits, columns = CASES[case]
    alternating = torch.full((columns,), weight)
    alternating[columns // 2 :] *= -1
    signed = torch.stack([torch.full((columns,), weight), alternating.clamp(max=127)])
    all_qparams = {at: QParams(1.0, round(zero_point * ((1 << b) - 1)), b) for at, b in ((PLAIN, 8), (RELAXED, bits))}
    steps = Steps(device, 1)
    layer = layer_of(signed, all_qparams, steps, ops)
    for timestep, qparams in all_qparams.items():
        steps.set(torch.tensor(timestep))
        generator = torch.Generator().manual_seed(0)
        x_q = torch.randint(0, qparams.qmax + 1, (5, columns), generator=generator)
        x_q[0], x_q[1] = 0, qparams.qmax
        x_q[2], x_q[3] = torch.where(signed[1] > 0, qparams.qmax, 0), torch.where(signed[1] > 0, 0, qparams.qmax)
        quantized = layer.quantize((x_q - qparams.zero_point).float().to(device))
        y = layer.multiply(quantized, torch.float32)
        expected = ((x_q - qparams.zero_point) @ signed.T).float()  # of int64: rounded once, as in the kernel
        assert torch.equal(y.cpu(), expected)


@pytest.mark.parametrize("bits", range(9, MOST_BITS + 1))
def test_a_layer_at_the_limit_has_one_sum_and_one_beyond_has_two(bits: int) -> None:
    def weights(largest: int) -> Weights:
        nothing = torch.zeros(1)
        return Weights(nothing, None, nothing, nothing, None, largest, 1)

    most = (2**31 - 1) // ((1 << bits) - 1)
    assert not weights(most).overflows(bits)
    assert weights(most + 1).overflows(bits)


def test_a_sum_beyond_int32_is_noticed_in_the_interpreter(ops: ModuleType, device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("sums on the way can be seen in the interpreter alone")
    steps = Steps(device, 1)
    columns = largest_in_32_bits(16, 127) * 2
    layer = layer_of(torch.full((1, columns), 127), {PLAIN: QParams(1.0, 0, 16)}, steps, ops)
    layer._split = False
    steps.set(torch.tensor(PLAIN))
    with pytest.raises(Exception, match="a running sum leaves int32"):
        layer(torch.full((1, columns), 65535.0))
