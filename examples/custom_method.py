"""Registers a quantization method of one's own: a name, default keys, and a tuple of stages.

Run: python examples/custom_method.py

`percentile` rounds weights to nearest and has a range for each step that leaves out the largest activations.
"""

import bitbrush
from bitbrush.methods.method import Method
from bitbrush.methods.pcr import WEIGHTS
from bitbrush.methods.recipe import Recipe
from bitbrush.methods.stages.ranges import OBSERVE, RANGES_BY_STEP
from bitbrush.zoo import prompt_set


def defaults(activations):
    """Returns the method's recipe for a number of activation bits."""
    return Recipe(method="percentile", activations=activations, activation_range="percentile")


bitbrush.register_method(Method("percentile", defaults, (*WEIGHTS, OBSERVE, RANGES_BY_STEP)))

pipe = bitbrush.load_full_precision("emoji-sd")
prompts = prompt_set("emoji-sd", "coco", "calibration")
quantized = bitbrush.quantize(pipe, prompts, method="percentile", steps=4, num_prompts=2)
image = quantized.pipeline()("a large red apple on a blue background", num_inference_steps=4).images[0]
print(quantized.recipe.name, "stages:", ", ".join(quantized.costs), "image:", image.size)
