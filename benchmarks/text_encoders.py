"""Memory of SDXL's text encoders, of full size with random weights in half precision, as a quantization loads them.

    python benchmarks/text_encoders.py

The other networks are those of emoji-sdxl. Prints what a process holds more than before, in MiB, its peak in all, and
what it found: the sums of the embeddings must agree.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from bitbrush.session.allocator import allow_tuning
from bitbrush.session.memory import peak_resident_mib, resident_memory
from bitbrush.session.offload import Offload
from bitbrush.sources.models import load_full_precision, load_source
from bitbrush.zoo import model_path

FIRST = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SECOND = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
PROMPTS = ["a red cat"] * 16


def main() -> None:
    if len(sys.argv) > 1:
        measure(*sys.argv[1:])
        return
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model")
        for way in ("as a quantization", "in float32"):
            subprocess.run([sys.executable, __file__, way, folder], check=True)


def write_model(folder: Path) -> None:
    torch.manual_seed(0)
    pipe = StableDiffusionXLPipeline.from_pretrained(model_path("emoji-sdxl"))
    pipe.text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=49408, **FIRST))
    pipe.text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=49408, projection_dim=1280, **SECOND))
    pipe.to(torch.float16).save_pretrained(folder)


@torch.no_grad()
def measure(way: str, folder: str) -> None:
    allow_tuning()  # as the command line does
    model, before = Path(folder) / "model", resident_memory()
    pipe = (
        load_source(model, offload=Offload(Path(folder))) if way == "as a quantization" else load_full_precision(model)
    )
    loaded = peak_resident_mib()
    embeddings = pipe.encode_prompt(PROMPTS, device="cpu")
    sums = [round(float(one.double().sum()), 6) for one in embeddings]
    held = (resident_memory() - before) / 2**20
    print(f"{way}: holds {held:.0f} MiB, peak {loaded:.0f} while loading; {sums}")


if __name__ == "__main__":
    main()
