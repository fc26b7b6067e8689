"""Prompts from files and bundled sets, and what a text encoder does not take of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from diffusers import DiffusionPipeline

from bitbrush.sources.prompt_files import read_prompt_file
from bitbrush.zoo import MODELS, prompt_set, prompt_sets

CALIBRATION, TEST = "calibration", "test"
DEFAULT_CALIBRATION_SET = "coco"


def calibration_prompts(source: str | None, model: str, *, option: str = "--prompts") -> tuple[str, ...]:
    """From a bundled set or a file; without ``source`` the model's own set, which only bundled models have.

    ``option``: by which a user names the source.
    """
    if source is None and model not in MODELS:
        raise ValueError(
            f"model {model!r} has no prompts of its own; name a file of prompts, one a line, with {option}"
        )
    return read_prompts(source or DEFAULT_CALIBRATION_SET, model, CALIBRATION)


def held_out_prompts(sources: Sequence[str], model: str) -> dict[str, tuple[str, ...]]:
    """By name, from bundled sets or files; without any all bundled test sets of the model."""
    names = sources or (
        [name for name, splits in prompt_sets(model).items() if TEST in splits] if model in MODELS else []
    )
    if not names:
        raise ValueError(
            f"model {model!r} has no prompts of its own; name a file of prompts, one a line, with --prompts"
        )
    return {Path(name).stem: read_prompts(name, model, TEST) for name in names}


class Domain(StrEnum):
    """Whether a test set is of the style that was calibrated on: what a method keeps on the other is generalization."""

    CALIBRATION = "calibration style"
    UNSEEN = "unseen style"


@dataclass(frozen=True)
class PromptSet:
    """Held-out prompts; all of them, however many are used: their place in the list names their pictures."""

    name: str
    domain: Domain
    prompts: tuple[str, ...]


def bench_sets(sources: Sequence[str], unseen: Sequence[str], model: str) -> tuple[PromptSet, ...]:
    """``sources`` of the calibration's style and ``unseen`` of another; without any all bundled sets of the model.

    A bundled set that calibration prompts exist of is of their style, any other unseen, whichever way it is named.
    """
    if not sources and not unseen:
        sources = tuple(held_out_prompts((), model))
    made: list[PromptSet] = []
    for source, given in [(s, Domain.CALIBRATION) for s in sources] + [(s, Domain.UNSEEN) for s in unseen]:
        domain = given
        if model in MODELS and source in prompt_sets(model):
            domain = Domain.CALIBRATION if CALIBRATION in prompt_sets(model)[source] else Domain.UNSEEN
        name = Path(source).stem
        if any(other.name == name for other in made):
            raise ValueError(f"two prompt sets are called {name!r}; rename a file")
        made.append(PromptSet(name, domain, read_prompts(source, model, TEST)))
    return tuple(made)


def read_prompts(source: str, model: str, split: str) -> tuple[str, ...]:
    """The ``split`` of a bundled set of that name, or what :func:`read_prompt_file` finds in a file.

    Raises ValueError where there is neither, or the file is unreadable or empty.
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
    """A message for each prompt of which the text encoder drops the end; of several the one that takes most."""
    parts = [getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2", "tokenizer_3")]
    tokenizer = max((part for part in parts if part is not None), key=lambda part: part.model_max_length)
    limit = tokenizer.model_max_length
    for prompt in dict.fromkeys(prompts):
        tokens = tokenizer(prompt).input_ids
        if len(tokens) > limit:
            dropped = tokenizer.decode(tokens[limit - 1 : -1])
            yield (
                f"prompt {_shortened(prompt)!r} has {len(tokens)} tokens, the text encoder takes {limit}; "
                f"dropped: {_shortened(dropped)!r}"
            )


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
