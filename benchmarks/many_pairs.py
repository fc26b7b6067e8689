"""Many pairs of 512 x 512 pictures: peak memory beside their number, and speed beside the network's own.

    python benchmarks/many_pairs.py 500        # prints peak memory and seconds of each stage
    python benchmarks/many_pairs.py 5000       # the same; needs 4 GB in the temporary folder
    python benchmarks/many_pairs.py speed      # what files cost beside feature extractors, and a generator

The pictures are synthetic, so that no denoiser has to run: the second of a pair is the first with other grain. They go
through the same image sets, chunks and figures as a benchmark's.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from bitbrush.bench.experiments.bench.figures import bench_figures
from bitbrush.bench.experiments.bench.qdiffbench import (
    Entry,
    GeneratedImages,
    compute_all,
)
from bitbrush.bench.experiments.protocol import ANOTHER_SEED
from bitbrush.bench.images.chunks import CHUNK, chunks, compute_chunks
from bitbrush.bench.images.image_set import ImageSet
from bitbrush.bench.images.image_values import ImageSets, Work
from bitbrush.bench.networks.chosen import load_networks
from bitbrush.session.costs import CostLedger
from bitbrush.session.memory import peak_resident_mib
from bitbrush.session.progress import silent
from bitbrush.session.ranks import Ranks
from bitbrush.sources.prompts import Domain, PromptSet

SIZE = 512
ALONE = Work(Ranks(), silent)


def picture(index: int, *, noisy: bool) -> NDArray[np.uint8]:
    """Smooth shapes with grain, as large on disk as a photograph: 0.4 MB."""
    rng = np.random.default_rng(index)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = np.random.default_rng(index + (1 << 32) * noisy).integers(-3, 4, smooth.shape, dtype=np.int16)
    return np.clip(smooth + grain, 0, 255).astype(np.uint8)


def made(root: Path, name: str, count: int, *, noisy: bool) -> ImageSets:
    prompts = [f"picture {index}" for index in range(count)]
    images = ImageSet.open(root, name, prompts, seed=1, made_by={"model": name})
    for index in range(count):
        images.add(index, picture(index, noisy=noisy), None)
    return ImageSets((images,), count)


def memory(count: int) -> None:
    """Peak resident memory after each stage, and its seconds."""
    costs = CostLedger()
    networks = load_networks("emoji-sd")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        before = peak_resident_mib()
        with costs.phase("pictures written"):
            reference, candidate = (made(Path(folder), str(noisy), count, noisy=noisy) for noisy in (False, True))
        entries = [Entry(None, name, {"set": one}) for name, one in ((ANOTHER_SEED, candidate), ("noisy", candidate))]
        generated = GeneratedImages(Entry(None, "smooth", {"set": reference}), entries[0], (entries[1],), "none", 0)
        with costs.phase("features, pairs, defects"):
            compute_all(generated, networks, ALONE)
        with costs.phase("figures"):
            bench_figures(generated, [PromptSet("set", Domain.CALIBRATION, reference.prompts)], networks, silent)
    print(f"{count} pairs: {before:.0f} MiB before")
    for phase, cost in costs.phases.items():
        print(f"  {phase}: {cost.seconds:.0f} s, peak {cost.peak_mib:.0f} MiB")


@dataclass(frozen=True)
class Vision:
    """A CLIP vision tower of random weights: the work of a real one, at 224 pixels."""

    model: CLIPVisionModel

    @torch.no_grad()
    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        small = torch.nn.functional.interpolate(pixels, 224, mode="bilinear", antialias=True)
        return self.model(pixel_values=small).pooler_output.numpy()


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def speed(rounds: int = 5) -> None:
    """Of writing a picture; of networks on pictures in memory, and how much of their speed is left with files."""
    torch.manual_seed(0)
    vit = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    networks = {
        f"CLIP ViT-B/{patch}": Vision(CLIPVisionModel(CLIPVisionConfig(patch_size=patch, **vit)).eval())
        for patch in (32, 16)
    }
    with tempfile.TemporaryDirectory() as folder:
        (images,) = made(Path(folder), "set", 2 * CHUNK, noisy=False).sets
        loaded = [images.images(chunk) for chunk in chunks(2 * CHUNK)]
        writing = seconds(lambda: [images.add(index, image, None) for index, image in enumerate(loaded[0])])
        print(f"writing: {1000 * writing / CHUNK:.1f} ms a picture")
        for name, network in networks.items():
            turns = [_round(images, loaded, network, Path(folder) / str(turn)) for turn in range(rounds)]
            alone, share = np.median(turns, axis=0)
            print(f"{name}: {1000 * alone:.1f} ms a picture; {share:.3f} of its speed", flush=True)


def _round(images: ImageSet, loaded: list[NDArray[np.uint8]], network: Vision, place: Path) -> tuple[float, float]:
    """Seconds a picture of the network alone, and what share of that speed is left with files read and written."""
    alone = seconds(lambda: [network.features(chunk) for chunk in loaded])
    told = {"phase": "features", "ranks": Ranks(), "progress": silent}
    folder = place / str(id(network))
    streamed = seconds(lambda: compute_chunks(folder, 2 * CHUNK, images.images, network.features, **told))
    return alone / (2 * CHUNK), alone / streamed


if __name__ == "__main__":
    if sys.argv[1] == "speed":
        speed()
    else:
        memory(int(sys.argv[1]))
