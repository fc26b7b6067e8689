"""Loads an artifact and generates an image, as with any diffusers pipeline.

Run: python examples/load_and_generate.py [DIRECTORY], after quantize_and_save.py
"""

import sys

import torch

import bitbrush

directory = sys.argv[1] if len(sys.argv) > 1 else "apple"
pipe = bitbrush.load(directory)  # runtime="reference" emulates the integers on every machine
noise = torch.Generator().manual_seed(0)  # the same noise gives the same image
result = pipe("a large red apple on a blue background", num_inference_steps=10, generator=noise)
result.images[0].save("apple.png")

manifest = bitbrush.read_manifest(directory)
print(f"{manifest['base_model']} by {manifest['recipe']['method']}: apple.png")
