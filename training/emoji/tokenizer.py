"""The tokenizer: CLIP's byte-pair encoding, learned from captions of the world."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from training.emoji.config import TokenizerConfig

START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # how CLIP splits a text before merging bytes


def train_tokenizer(captions: Iterable[str], config: TokenizerConfig) -> CLIPTokenizer:
    """A CLIPTokenizer with merges learned from the captions.

    Its vocabulary is the learned one and, as CLIP's own, every byte both within and at the end of a word.
    """
    learner = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=_WORD_END, unk_token=END))
    learner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[START, END],
        initial_alphabet=alphabet,
        end_of_word_suffix=_WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    learned = json.loads(learner.to_str())["model"]
    vocabulary: dict[str, int] = learned["vocab"]
    for byte in alphabet:
        vocabulary.setdefault(byte + _WORD_END, len(vocabulary))
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in learned["merges"]],
        model_max_length=config.max_length,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
    )


def load_tokenizer(directory: Path) -> CLIPTokenizer:
    """The tokenizer saved in `directory`. Raises FileNotFoundError where the tokenizer stage has not run."""
    if not (directory / "tokenizer.json").is_file():
        raise FileNotFoundError(f"no tokenizer in {directory}; run `python -m training.emoji tokenizer` first")
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(directory)
    return tokenizer
