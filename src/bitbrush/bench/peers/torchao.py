"""torchao: linear layers; convolutions stay in floating point."""

from torch import nn

from bitbrush.bench.peers.peer import Peer


def _quantize(denoiser: nn.Module, scheme: str) -> nn.Module:
    from torchao import quantization

    name = {
        "int8dq": "Int8DynamicActivationInt8WeightConfig",
        "int8wo": "Int8WeightOnlyConfig",
        "int4wo": "Int4WeightOnlyConfig",
    }[scheme]
    quantization.quantize_(denoiser, getattr(quantization, name)())
    return denoiser


TORCHAO = Peer("torchao", "torchao", {"int8dq": 8, "int8wo": 32, "int4wo": 32}, _quantize)
