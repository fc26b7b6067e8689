"""Prompts from files and bundled sets, and what a text encoder does not take of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from diffusers import DiffusionPipeline

from bitbrush.zoo import MODELS, prompt_set, prompt_sets

CALIBRATION, TEST = "calibration", "test"
DEFAULT_CALIBRATION_SET = "coco"


def calibration_prompts(source: str | None, model: str) -> tuple[str, ...]:
    """From a bundled set or a file; without ``source`` the model's own set, which only bundled models have."""
    if source is None and model not in MODELS:
        raise ValueError(
            f"model {model!r} has no prompts of its own; name a file of prompts, one a line, with --prompts"
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


def read_prompts(source: str, model: str, split: str) -> tuple[str, ...]:
    """The ``split`` of a bundled set of that name, or the lines of a UTF-8 text file that are not blank.

    Raises ValueError where there is neither, or the file is unreadable or empty.
    """
    if model in MODELS and source in prompt_sets(model):
        return prompt_set(model, source, split)
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        bundled = f"; bundled sets of {model} are {', '.join(prompt_sets(model))}" if model in MODELS else ""
        raise ValueError(f"prompts {source!r}: there is no such file{bundled}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts {source!r}: the file is not UTF-8 text ({error}); convert it") from error
    except OSError as error:
        raise ValueError(f"prompts {source!r}: the file cannot be read ({error.strerror})") from error
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not prompts:
        raise ValueError(f"prompts {source!r}: the file is empty; write one prompt a line")
    return prompts


def too_long(pipe: DiffusionPipeline, prompts: Sequence[str]) -> Iterator[str]:
    """A message for each prompt of which the text encoder drops the end."""
    tokenizer = pipe.tokenizer
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
