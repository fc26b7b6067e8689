"""Reads the table of a benchmark with pandas: a row per image, candidate and metric.

Run: python examples/read_results.py [DIRECTORY], a folder that `bitbrush bench` wrote

Without a folder it first runs a small benchmark of what quantize_and_save.py made. It needs pandas.
"""

import sys
from pathlib import Path

import bitbrush

try:
    import pandas as pd
except ImportError:
    sys.exit("pandas is missing: pip install pandas")

directory = Path(sys.argv[1] if len(sys.argv) > 1 else "apple-bench")
if not directory.exists():
    bitbrush.benchmark("emoji-sd", {"apple": "apple"}, directory, prompts=["coco"], num_images=3, steps=4)

values = pd.read_csv(directory / "results.csv")
means = values.pivot_table("value", index=["prompt_set", "metric"], columns="candidate")
print(means.to_string(float_format="{:.3f}".format))

worst = values[values["metric"] == "PSNR (dB)"].nsmallest(3, "value")
print(worst[["candidate", "prompt", "seed", "value"]].to_string(index=False))
