"""Prompts from files and bundled sets, and detection of prompts that exceed the text encoder's limit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from diffusers import DiffusionPipeline

from bitbrush.sources.prompt_files import read_prompt_file
from bitbrush.sources.prompt_texts import shortened
from bitbrush.zoo import MODELS, prompt_set, prompt_sets

CALIBRATION, TEST = "calibration", "test"
DEFAULT_CALIBRATION_SET = "coco"


def calibration_prompts(source: str | None, model: str, *, option: str = "--prompts") -> tuple[str, ...]:
    """Reads calibration prompts from a bundled set or a file.

    Args:
        source: Set or file; None for the model's own set, which only bundled models have.
        model: Name of the model.
        option: Command-line option that names the source, for the message.

    Raises:
        ValueError: There is no source, or it cannot be read.
    """
    if source is None and model not in MODELS:
        raise ValueError(
            f"model {model!r} has no prompts of its own; name a file of prompts, one a line, with {option}"
        )
    return read_prompts(source or DEFAULT_CALIBRATION_SET, model, CALIBRATION)


def held_out_prompts(sources: Sequence[str], model: str) -> dict[str, tuple[str, ...]]:
    """Reads held-out prompts from bundled sets or files; without ``sources``, all bundled test sets of the model.

    Returns:
        Prompts by name of the set.
    """
    names = sources or (
        [name for name, splits in prompt_sets(model).items() if TEST in splits] if model in MODELS else []
    )
    if not names:
        raise ValueError(
            f"model {model!r} has no prompts of its own; name a file of prompts, one a line, with --prompts"
        )
    return {Path(name).stem: read_prompts(name, model, TEST) for name in names}


class Domain(StrEnum):
    """Style of a test set relative to calibration; quality kept on an unseen style is generalization."""

    CALIBRATION = "calibration style"
    UNSEEN = "unseen style"


@dataclass(frozen=True)
class PromptSet:
    """Set of all held-out prompts, however many are used: an image is named by its prompt's index in the list."""

    name: str
    domain: Domain
    prompts: tuple[str, ...]


def bench_sets(sources: Sequence[str], unseen: Sequence[str], model: str) -> tuple[PromptSet, ...]:
    """Reads the test sets of a benchmark; without arguments, all bundled sets of the model.

    A bundled set with calibration prompts is of the calibration style, any other is unseen, whichever way it is named.

    Args:
        sources: Sets or files of the calibration style.
        unseen: Sets or files of another style.
        model: Name of the model.

    Raises:
        ValueError: Two sets have the same name, or one cannot be read.
    """
    if not sources and not unseen:
        sources = tuple(held_out_prompts((), model))
    sets: list[PromptSet] = []
    for source, style in [(s, Domain.CALIBRATION) for s in sources] + [(s, Domain.UNSEEN) for s in unseen]:
        domain = style
        if model in MODELS and source in prompt_sets(model):
            domain = Domain.CALIBRATION if CALIBRATION in prompt_sets(model)[source] else Domain.UNSEEN
        name = Path(source).stem
        if any(other.name == name for other in sets):
            raise ValueError(f"two prompt sets are called {name!r}; rename a file")
        sets.append(PromptSet(name, domain, read_prompts(source, model, TEST)))
    return tuple(sets)


def read_prompts(source: str, model: str, split: str) -> tuple[str, ...]:
    """Reads the ``split`` of a bundled set, or a prompt file (:func:`read_prompt_file`).

    Raises:
        ValueError: Neither exists, or the file is unreadable or empty.
    """
    if model not in MODELS:
        return read_prompt_file(source)
    if source in prompt_sets(model):
        return prompt_set(model, source, split)
    try:
        return read_prompt_file(source)
    except ValueError as error:
        if Path(source).exists():
            raise
        raise ValueError(f"{error}; bundled sets of {model} are {', '.join(prompt_sets(model))}") from None


def too_long(pipe: DiffusionPipeline, prompts: Sequence[str]) -> Iterator[str]:
    """Yields a message for each prompt that the text encoder truncates.

    If the pipeline has several text encoders, the one with the largest limit counts.
    """
    parts = [getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2", "tokenizer_3")]
    tokenizer = max((part for part in parts if part is not None), key=lambda part: part.model_max_length)
    limit = tokenizer.model_max_length
    for prompt in dict.fromkeys(prompts):
        tokens = tokenizer(prompt).input_ids
        if len(tokens) > limit:
            dropped = tokenizer.decode(tokens[limit - 1 : -1])
            yield (
                f"prompt {shortened(prompt)!r} has {len(tokens)} tokens, the text encoder takes {limit}; "
                f"dropped: {shortened(dropped)!r}"
            )
