"""A peer for tests: it rounds weights to bfloat16, fails when it quantizes, or fails when its denoiser runs."""

from typing import Any

import torch
from torch import nn

from bitbrush.bench.peers.peer import Peer


def _quantize(denoiser: nn.Module, scheme: str) -> nn.Module:
    if scheme == "refuses":
        raise TypeError("no kernel for this layer")
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.copy_(parameter.bfloat16())
    if scheme == "fails":
        denoiser.register_forward_pre_hook(_fail)
    return denoiser


def _fail(*_: Any) -> None:
    raise NotImplementedError("no product of these types")


FAKE = Peer("bitbrush", "bitbrush", {"bf16": 16, "refuses": 16, "fails": 16}, _quantize)
ABSENT = Peer("absent-quantizer", "absent_quantizer.core", {"int8": 8}, _quantize)
OF_FILES = Peer("bitbrush", "bitbrush", {}, _quantize)
