"""The package openvino, an optional dependency, and whether its integer kernels are exact on this machine."""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import numpy as np

from bitbrush.runtime.interface import RuntimeUnavailable

_ROWS, _COLUMNS = 16, 512


def load_openvino() -> ModuleType:
    """The imported package. Raises RuntimeUnavailable if it is not installed."""
    if importlib.util.find_spec("openvino") is None:
        raise RuntimeUnavailable(
            "the openvino runtime needs the package openvino, which is not installed: pip install 'bitbrush[openvino]'"
        )
    # Importing openvino reports to its makers over the network where its telemetry package is found. It does without.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def require_exact_products(openvino: Any) -> None:
    """Raises RuntimeUnavailable unless u8 x s8 products are summed exactly here.

    Processors without VNNI add pairs of products in 16 bits, which saturates. 255 times 127 shows it.
    """
    op = openvino.opset13
    x = op.parameter([_ROWS, _COLUMNS], np.float32)
    low, high = np.float32(0.0), np.float32(255.0)
    weight = op.multiply(op.convert(np.full((_ROWS, _COLUMNS), 127, np.int8), "f32"), np.ones((_ROWS, 1), np.float32))
    y = op.matmul(op.fake_quantize(x, low, high, low, high, 256), weight, transpose_a=False, transpose_b=True)
    compiled = openvino.Core().compile_model(openvino.Model([y], [x]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    sums = compiled([np.full((_ROWS, _COLUMNS), 255.0, np.float32)])[0]
    expected = 255 * 127 * _COLUMNS
    if not (sums == expected).all():
        raise RuntimeUnavailable(
            f"OpenVINO's integer kernels are not exact on this processor: {_COLUMNS} products of 255 and 127 add up "
            f"to {sums.flat[0]:.0f}, not {expected} (no VNNI?); use another runtime"
        )
