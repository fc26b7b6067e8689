"""SDNQ: weights of linear layers, with ``+conv`` of convolutions, with ``+matmul`` products in integers."""

from torch import nn

from bitbrush.bench.peers.peer import Peer

_OPTIONS = {
    "svd": {"use_svd": True},
    "conv": {"quant_conv": True},
    "matmul": {"use_quantized_matmul": True, "use_quantized_matmul_conv": True},
}


def _quantize(denoiser: nn.Module, scheme: str) -> nn.Module:
    from sdnq import sdnq_post_load_quant

    weights, *options = scheme.split("+")
    keys = {key: value for option in options for key, value in _OPTIONS[option].items()}
    quantized: nn.Module = sdnq_post_load_quant(denoiser, weights_dtype=weights, **keys)
    return quantized


_WEIGHTS_ALONE = ("int8", "int8+conv", "uint4", "uint4+conv", "uint4+svd", "uint4+svd+conv")
_SCHEMES = {**dict.fromkeys(_WEIGHTS_ALONE, 32), "int8+matmul": 8, "int8+conv+matmul": 8}
SDNQ = Peer("sdnq", "sdnq", _SCHEMES, _quantize)
