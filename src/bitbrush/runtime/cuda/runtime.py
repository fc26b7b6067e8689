"""The CUDA runtime: lowers a denoiser for an NVIDIA GPU."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from bitbrush.network.families import known_fusions
from bitbrush.network.layers import QuantizedLayer
from bitbrush.runtime.added_modules import adapt_added_modules
from bitbrush.runtime.consumers import FusionBackend
from bitbrush.runtime.cuda.engine import Engine, Recorder
from bitbrush.runtime.cuda.fused_ops import CudaFusedOps, attend
from bitbrush.runtime.cuda.joined import AtOnce, together
from bitbrush.runtime.cuda.layers import IntegerLayer
from bitbrush.runtime.cuda.lowering import Lowering, execution
from bitbrush.runtime.cuda.steps import Steps
from bitbrush.runtime.forward import compute_in
from bitbrush.runtime.fused import fuse
from bitbrush.runtime.integers import signed_bytes
from bitbrush.runtime.interface import Execution
from bitbrush.timeline.tracker import takes_time


@dataclass(frozen=True)
class CudaRuntime:
    """GPU runtime in integers.

    Attributes:
        device: The GPU, or the CPU under Triton's interpreter.
        dtype: Dtype of everything between the integer products.
        nibbles: Whether weights of up to 4 bits take half a byte.
        record: Records calls as graphs; None: kernels are launched one by one.
    """

    device: torch.device
    dtype: torch.dtype = torch.bfloat16
    nibbles: bool = False
    record: Recorder | None = None

    name = "cuda"

    @property
    def description(self) -> str:
        """Kernels and dtypes that it computes with, in one line."""
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "Triton's interpreter"
        return f"Triton s8 x s8 on {where}, {str(self.dtype).removeprefix('torch.')} between the products"

    def execution(self, original: nn.Module, layer: QuantizedLayer) -> Execution:
        """Predicts how a layer will be executed."""
        return execution(original, layer, signed_bytes(layer.weight))

    def lower(self, denoiser: nn.Module, layers: Iterable[QuantizedLayer]) -> tuple[Execution, ...]:
        """Changes ``denoiser`` in place so that it computes with the quantized layers."""
        ops = importlib.import_module("bitbrush.runtime.cuda.ops")
        most = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in denoiser.modules())
        steps = Steps(self.device, most)
        lowering = Lowering(denoiser, steps, ops, self.dtype, self.nibbles)
        described = known_fusions(denoiser)
        executions = tuple(lowering.place(layer) for layer in layers)
        steps.tabulate()
        lowering.move_rest()
        texts, times = AtOnce(lambda text: text), AtOnce(F.silu, torch.float32)
        fuse(
            denoiser, described, IntegerLayer, FusionBackend(CudaFusedOps(ops), attend, together, texts.add, times.add)
        )
        for one in (texts, times):
            one.join()
        adapt_added_modules(denoiser, self.device, self.dtype)
        if steps.empty and not takes_time(denoiser):
            compute_in(denoiser, self.dtype, self.device)
            return executions
        denoiser.forward = Engine(denoiser, steps, self.dtype, self.record, (texts, times))
        return executions
