"""A GGUF file of a tiny U-Net, its linear weights in 8 bits; tests that need it are skipped without the package."""

from typing import Any

import pytest
from diffusers import StableDiffusionPipeline

from tests.artifact.original_layout import original_layout


def write_gguf(pipe: StableDiffusionPipeline, path: str) -> None:
    gguf: Any = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "sd1")
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in original_layout(pipe).items():
        if name.startswith("model.diffusion_model."):
            values = tensor.detach().float().numpy()
            if values.ndim == 2 and values.shape[1] % 32 == 0:
                writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
