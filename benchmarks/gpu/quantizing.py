"""A quantization computed on a device and on the processor: ``python -m gpu.quantizing DEVICE STEPS``.

Prints as JSON the seconds of both, the share of equal integers of the weights, and how far scales of activations are
apart, in the median. PCR W4A8 of ``emoji-sd`` with learned rounding, two prompts.
"""

import json
import sys
import time

import torch

import bitbrush
from bitbrush.quantization.quantize import Quantization
from bitbrush.zoo import prompt_set

MODEL, PROMPTS = "emoji-sd", 2


def main() -> None:
    device, steps = sys.argv[1], int(sys.argv[2])
    prompts = prompt_set(MODEL, "coco", "calibration")
    recipe = bitbrush.METHODS["pcr"].recipe({"steps": steps, "num_prompts": PROMPTS, "batch_size": PROMPTS})
    pipe = bitbrush.load_full_precision(MODEL)
    made, seconds = [], []
    for place in ("cpu", device):
        before = time.perf_counter()
        made.append(bitbrush.quantize(pipe.to(place), recipe, prompts))
        seconds.append(round(time.perf_counter() - before, 1))
    told = {"device": device, "steps": steps, "seconds": seconds[1], "seconds_on_processor": seconds[0]}
    print(json.dumps({**told, **_apart(*made)}))


def _apart(one: Quantization, other: Quantization) -> dict[str, float]:
    pairs = list(zip(one.outcome.layers, other.outcome.layers, strict=True))
    equal = torch.cat([(a.weight.w_q == b.weight.w_q).flatten() for a, b in pairs])
    scales = [
        abs(x.scale / y.scale - 1)
        for a, b in pairs
        for x, y in zip(a.schedule.qparams, b.schedule.qparams, strict=True)
    ]
    return {
        "equal_integers": round(float(equal.float().mean()), 4),
        "scales_apart": float(torch.tensor(scales).median()),
    }


if __name__ == "__main__":
    main()
