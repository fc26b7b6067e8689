"""Tokenizers that transformers 4 reads as well as the version that saved them."""

from pathlib import Path
from typing import Any

from tokenizers.models import BPE


def save_vocabulary(tokenizer: Any, folder: Path) -> None:
    """``vocab.json`` and ``merges.txt`` of a byte-pair encoding such as CLIP's; of other tokenizers nothing.

    transformers 5 saves ``tokenizer.json`` alone; the CLIPTokenizer of version 4 is made of these two.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and isinstance(backend.model, BPE):
        backend.model.save(str(folder))
