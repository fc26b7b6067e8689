"""The oneDNN runtime: lowers a denoiser for this machine's CPU."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from bitbrush.network.families import known_fusions
from bitbrush.network.fusions import TransformerBlock
from bitbrush.network.layers import QuantizedLayer
from bitbrush.runtime.added_modules import adapt_added_modules
from bitbrush.runtime.forward import compute_in
from bitbrush.runtime.integers import signed_bytes
from bitbrush.runtime.interface import Execution
from bitbrush.runtime.onednn.lowering import Lowering, NonFiniteForward, execution
from bitbrush.runtime.onednn.weights import Memory
from bitbrush.runtime.tools import Tools
from bitbrush.session.allocator import keep_freed_memory
from bitbrush.session.offload import CPU


@dataclass(frozen=True)
class OneDnnRuntime:
    """CPU runtime in integers; ``dtype`` is that of everything between the products, float32 or bfloat16."""

    tools: Tools
    dtype: torch.dtype = torch.bfloat16
    memory: Memory = Memory.EXPANDED

    name = "onednn"
    device = CPU

    @property
    def description(self) -> str:
        """Kernels and dtypes that it computes with, in one line."""
        fused_ops = self.tools.fused_ops.name
        return f"oneDNN u8 x s8, {str(self.dtype).removeprefix('torch.')} between the products by {fused_ops}"

    def execution(self, original: nn.Module, layer: QuantizedLayer) -> Execution:
        """Predicts how a layer will be executed."""
        return execution(original, layer, signed_bytes(layer.weight))

    def lower(self, denoiser: nn.Module, layers: Iterable[QuantizedLayer]) -> tuple[Execution, ...]:
        """Changes ``denoiser`` in place so that it computes with the quantized layers."""
        lowering = Lowering(denoiser, self.tools, self.dtype, self.memory)
        described = known_fusions(denoiser)
        executions = tuple(lowering.place(layer) for layer in layers)
        lowering.name_slow_layers()
        lowering.convert_rest()
        lowering.fuse(described)
        adapt_added_modules(denoiser, CPU, self.dtype)
        denoiser.forward = NonFiniteForward(denoiser)
        # Fused blocks have the kernel already, and the mode for other attention slows every operator of torch down.
        fused = any(isinstance(one, TransformerBlock) for one in described)
        attention = None if fused else self.tools.attention
        compute_in(denoiser, self.dtype, self.device, attention)
        keep_freed_memory()
        return executions
