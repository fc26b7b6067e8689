"""optimum-quanto: weights of linear layers and convolutions."""

from torch import nn

from bitbrush.bench.peers.peer import Peer


def _quantize(denoiser: nn.Module, scheme: str) -> nn.Module:
    from optimum import quanto

    quanto.quantize(denoiser, weights=getattr(quanto, f"q{scheme}"))
    quanto.freeze(denoiser)
    return denoiser


QUANTO = Peer("optimum-quanto", "optimum.quanto", {"int8": 32, "int4": 32, "int2": 32, "float8": 32}, _quantize)
