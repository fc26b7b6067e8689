"""Loads a LoRA on an artifact, scales it, and removes it again. Needs the extra "lora".

Run: python examples/lora.py, after quantize_and_save.py
"""

import torch
from safetensors.torch import save_file

import bitbrush

# A LoRA of random factors stands for one from a hub: two factors for each query of attention.
pipe = bitbrush.load("apple")
factors = {}
for name, layer in pipe.unet.named_modules():
    if name.endswith("to_q"):
        factors[f"unet.{name}.lora_A.weight"] = torch.randn(4, layer.in_features) / 8
        factors[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, 4) / 8
save_file(factors, "style.safetensors")


def image(name: str) -> None:
    """Generates an image from the same noise."""
    noise = torch.Generator().manual_seed(0)
    pipe("a large red apple on a blue background", num_inference_steps=10, generator=noise).images[0].save(name)


pipe.load_lora_weights(".", weight_name="style.safetensors", adapter_name="style")
image("styled.png")
pipe.set_adapters("style", 0.5)
image("half-styled.png")
pipe.unload_lora_weights()
image("plain.png")
print("LoRA at scale 1, at scale 0.5, and removed: styled.png, half-styled.png, plain.png")
