"""Memory of one process over many generations, each with another LoRA.

    python benchmarks/lora_swaps.py --generations 200

emoji-sd by `rtn`, oneDNN runtime, one step an image; each image loads a LoRA of rank 32 for all layers and removes it
again, by unloading, deleting and swapping in place in turns. Writes benchmarks/results/lora-swaps.json.
"""

import argparse
import gc
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

import bitbrush
from bitbrush.session.memory import resident_memory

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RESULT = ROOT / "benchmarks" / "results" / "lora-swaps.json"
MODEL, RANK, SETTLED = "emoji-sd", 32, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=200)
    count: int = parser.parse_args().generations
    warnings.filterwarnings("ignore", message="Already found a `peft_config`")
    torch.set_num_threads(1)
    from tests.runtime.loras import random_lora

    exact = bitbrush.load_full_precision(MODEL)
    loras = [random_lora(exact.unet, strength=0.4, rank=RANK, seed=seed) for seed in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        bitbrush.quantize(exact, ["a tree"], method="rtn", steps=2, num_prompts=1).save(
            f"{folder}/artifact", base_model=MODEL
        )
        pipe: Any = bitbrush.load(f"{folder}/artifact", runtime="onednn")
    pipe.set_progress_bar_config(disable=True)
    sizes = [generated(pipe, loras, number) for number in range(count)]
    adapter = sum(tensor.nbytes for tensor in loras[0].values())
    record = {
        "model": MODEL,
        "rank": RANK,
        "generations": count,
        "adapter_mib": adapter / 2**20,
        "resident_mib": [size / 2**20 for size in sizes],
        "growth_after_tenth_mib": (max(sizes[SETTLED:]) - max(sizes[:SETTLED])) / 2**20,
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"growth after image {SETTLED}: {record['growth_after_tenth_mib']:.2f} MiB of {sizes[-1] / 2**20:.0f} MiB")


def generated(pipe: Any, loras: list[dict[str, Any]], number: int) -> int:
    """Generates an image with a LoRA, removes the LoRA in one of three ways, and returns the resident memory."""
    name = f"style-{number}"
    pipe.load_lora_weights(dict(loras[number % 2]), adapter_name=name)
    pipe("a tree", num_inference_steps=1, output_type="latent")
    match number % 3:
        case 0:
            pipe.unload_lora_weights()
        case 1:
            pipe.delete_adapters(name)
        case _:
            pipe.load_lora_weights(dict(loras[1 - number % 2]), adapter_name=name, hotswap=True)
            pipe("a tree", num_inference_steps=1, output_type="latent")
            pipe.unload_lora_weights()
    gc.collect()
    return resident_memory()


if __name__ == "__main__":
    main()
