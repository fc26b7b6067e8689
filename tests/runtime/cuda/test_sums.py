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
from bitbrush.timeline.schedule import ActivationSchedule

PLAIN, RELAXED = 900.0, 100.0


def most_columns(bits: int) -> int:
    """Number of columns of weights -128 up to which sums of activations of these bits fit into 32 bits."""
    return (2**31 - 1) // (((1 << bits) - 1) * 128)


CASES = {
    "high bytes near 2^31": (10, 10, 6553, 300),
    "high bytes near -2^31": (-10, 10, 6553, 1023),
    "limit of 12 bits": (-128, 12, most_columns(12), 4095),
    "limit of 15 bits": (-128, 15, most_columns(15), 32767),
    "limit of 16 bits": (-128, 16, most_columns(16), 65535),
    "beyond 12 bits": (-128, 12, most_columns(12) + 1, 0),
    "beyond 15 bits": (127, 15, most_columns(15) + 5, 0),
    "beyond 16 bits": (-128, 16, 20 * most_columns(16), 1000),
}
"""Weight, activation bits, columns and zero point.

The sum of the first two cases' weights is 65,530. If 128 were subtracted from high bytes, their sum would be some
32,768 times as large, just within int32, and the low bytes would push it out.
"""


def layer_of(signed: Tensor, all_qparams: dict[float, QParams], steps: Steps, ops: ModuleType) -> IntegerLinear:
    filters, columns = signed.shape
    qparams = WeightQParams(torch.ones(filters), torch.full((filters,), 128, dtype=torch.uint8), 8)
    weight = QuantizedWeight((signed + 128).to(torch.uint8), qparams)
    schedule = ActivationSchedule.of(all_qparams)
    layer = QuantizedLayer("layer", weight, None, schedule)
    weights = lay_out(layer, signed.to(torch.int8), steps.device, nibbles=False)
    return IntegerLinear(columns, weights, steps.qparams(schedule), CudaFusedOps(ops))


@pytest.mark.parametrize("case", list(CASES))
def test_no_sum_leaves_int32_on_the_way(case: str, ops: ModuleType, device: torch.device) -> None:
    """Activations at both ends and between, weights of one sign and of both."""
    weight, bits, columns, zero_point = CASES[case]
    alternating = torch.full((columns,), weight)
    alternating[columns // 2 :] *= -1
    signed = torch.stack([torch.full((columns,), weight), alternating.clamp(max=127)])
    qparams = QParams(1.0, zero_point, bits)
    steps = Steps(device, 1)
    layer = layer_of(signed, {PLAIN: QParams(1.0, 100, 8), RELAXED: qparams}, steps, ops)
    steps.set(torch.tensor(RELAXED))
    x_q = torch.randint(0, qparams.qmax + 1, (5, columns), generator=torch.Generator().manual_seed(0))
    x_q[0], x_q[1] = 0, qparams.qmax
    x_q[2], x_q[3] = torch.where(signed[1] > 0, qparams.qmax, 0), torch.where(signed[1] > 0, 0, qparams.qmax)
    y = layer.multiply(layer.quantize((x_q - zero_point).float().to(device)), torch.float32)
    expected = ((x_q - zero_point) @ signed.T).float()  # of int64: rounded once, as in the kernel
    assert torch.equal(y.cpu(), expected)


@pytest.mark.parametrize("bits", range(9, 17))
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
    columns = 519  # 127^2 * 519 * 256 fits into int32, 127^2 * 519 * 257 does not
    layer = layer_of(torch.full((1, columns), 127), {PLAIN: QParams(1.0, 0, 16)}, steps, ops)
    layer._split = False
    steps.set(torch.tensor(PLAIN))
    with pytest.raises(Exception, match="a running sum leaves int32"):
        layer(torch.full((1, columns), 65535.0))
