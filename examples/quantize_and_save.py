"""Quantizes the bundled emoji-sd to 4-bit weights and 8-bit activations, and saves the artifact.

Run: python examples/quantize_and_save.py [DIRECTORY]

Round-to-nearest, ten steps and four prompts keep this short. Leave the three keys out for the default method, `best`.
"""

import sys

import bitbrush
from bitbrush.zoo import prompt_set

directory = sys.argv[1] if len(sys.argv) > 1 else "apple"
pipe = bitbrush.load_full_precision("emoji-sd")
prompts = prompt_set("emoji-sd", "coco", "calibration")
quantized = bitbrush.quantize(pipe, prompts, weights=4, activations=8, method="rtn", steps=10, num_prompts=4)
quantized.save(directory)

for layer in quantized.outcome.layers[:5]:
    print(layer.name, tuple(layer.weight.w_q.shape))
print("saved:", directory)
