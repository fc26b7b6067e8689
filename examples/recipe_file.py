"""Writes a recipe file, quantizes by it, and recalibrates the artifact for another sampling plan.

Run: python examples/recipe_file.py [FOLDER]

The weights stay as they are when an artifact is recalibrated; only the activations' parameters are found anew.
"""

import sys
from pathlib import Path

import bitbrush
from bitbrush.zoo import prompt_set

RECIPE = """
method = "one-shot"
weights = 6
rounding = "nearest"
steps = 4
num_prompts = 2
exclude = ["*.attn2.*"]  # cross-attention stays in floating point
"""

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "recipe")
folder.mkdir(exist_ok=True)
(folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")

pipe = bitbrush.load_full_precision("emoji-sd")
prompts = prompt_set("emoji-sd", "coco", "calibration")
bitbrush.quantize(pipe, prompts, folder / "recipe.toml").save(folder / "w6a8")
again = bitbrush.recalibrate(folder / "w6a8", {"steps": 3, "scheduler": "ddim"}, prompts)
again.save(folder / "w6a8-ddim")
print(bitbrush.read_manifest(folder / "w6a8-ddim")["recipe"]["scheduler"])
