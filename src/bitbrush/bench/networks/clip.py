"""CLIP: images and texts in one space, for CLIP score, CMMD and as a feature extractor."""

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, CLIPModel

from bitbrush.sources.networks import require_match, require_whole
from bitbrush.zoo import model_path


@dataclass(frozen=True)
class Clip:
    """Transformers' CLIPModel with tokenizer and image processor, in float32."""

    name: str
    digest: str
    model: Any
    tokenizer: Any
    processor: Any

    @property
    def distance_name(self) -> str:
        """Name of the Fréchet distance of its features."""
        return f"Fréchet distance ({self.name})"

    @torch.no_grad()
    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Computes projected, not normalized embeddings (N, D) of images (N, H, W, 3)."""
        pixels = self.processor([Image.fromarray(image) for image in images], return_tensors="pt").pixel_values
        output = self.model.vision_model(pixel_values=pixels.to(self.model.device))
        embeddings: NDArray[np.float32] = self.model.visual_projection(output.pooler_output).float().cpu().numpy()
        return embeddings

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Computes projected, not normalized embeddings (N, D) of texts; long texts are truncated."""
        tokens = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        output = self.model.text_model(**tokens.to(self.model.device))
        embeddings: NDArray[np.float32] = self.model.text_projection(output.pooler_output).float().cpu().numpy()
        return embeddings


def load_clip(source: str | os.PathLike[str], device: torch.device) -> Clip:
    """Loads a CLIP by bundled name, folder or hub id.

    Raises:
        ValueError: It is no CLIP with both towers, or cannot be loaded.
    """
    name = os.fspath(source)
    path = model_path(name) or name
    # transformers 5's CLIPImageProcessor resizes by torchvision where that is installed, with other pixels as a result.
    processor_class = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    try:
        config = AutoConfig.from_pretrained(path)
        _require_both_towers(name, config)
        model, report = CLIPModel.from_pretrained(
            path, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
        _require_all_weights(name, report["missing_keys"])
        require_match(model, name, report)
        require_whole(model.float(), name)
        tokenizer = AutoTokenizer.from_pretrained(path)
        processor = processor_class.from_pretrained(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"CLIP {name!r} cannot be used; name a bundled one (emoji-clip), a directory of a CLIPModel, or a hub id "
            f"that can be reached: {error}"
        ) from error
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.text_config.max_position_embeddings)
    return Clip(Path(name).name, _digest(model, processor), model.to(device).eval(), tokenizer, processor)


def _require_both_towers(name: str, config: Any) -> None:
    if config.model_type != "clip":
        raise ValueError(
            f"{name} is a {config.model_type}, and a CLIPModel with a vision and a text tower is needed, e.g. "
            "openai/clip-vit-large-patch14"
        )


def _require_all_weights(name: str, missing: Collection[str]) -> None:
    """Refuses missing weights, which Transformers replaces by random numbers with only a warning."""
    if missing:
        raise ValueError(f"{name} lacks {len(missing)} of its weights, e.g. {min(missing)}; is a tower left out?")


def _digest(model: Any, processor: Any) -> str:
    digest = hashlib.sha256(json.dumps(processor.to_dict(), sort_keys=True, default=str).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
