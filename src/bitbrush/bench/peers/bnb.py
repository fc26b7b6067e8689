"""bitsandbytes: weights of linear layers, as diffusers replaces them."""

from torch import nn

from bitbrush.bench.peers.peer import Peer


def _quantize(denoiser: nn.Module, scheme: str) -> nn.Module:
    import bitsandbytes

    for name, layer in list(denoiser.named_modules()):
        if isinstance(layer, nn.Linear):
            shape = layer.in_features, layer.out_features, layer.bias is not None
            if scheme == "int8":
                replaced = bitsandbytes.nn.Linear8bitLt(*shape, has_fp16_weights=False)
            else:
                replaced = bitsandbytes.nn.Linear4bit(*shape, quant_type=scheme)
            replaced.load_state_dict(layer.state_dict())
            denoiser.set_submodule(name, replaced.to(layer.weight.device))  # which quantizes
    return denoiser


BNB = Peer("bitsandbytes", "bitsandbytes", {"nf4": 32, "fp4": 32, "int8": 8}, _quantize)
