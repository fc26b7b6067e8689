"""Tokenizer files that transformers 4 can read, too."""

from pathlib import Path
from typing import Any

from tokenizers.models import BPE


def save_vocabulary(tokenizer: Any, folder: Path) -> None:
    """Saves ``vocab.json`` and ``merges.txt`` of a byte-pair encoding such as CLIP's; other tokenizers are skipped.

    transformers 5 saves only ``tokenizer.json``; the CLIPTokenizer of version 4 needs these two files.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and isinstance(backend.model, BPE):
        backend.model.save(str(folder))
