"""Prompts of a caller: sequences of texts pass, all else is refused by name."""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

import bitbrush
from bitbrush.sources.prompt_files import read_prompt_file
from bitbrush.sources.prompt_texts import LONGEST, prompt_texts


class Text(str):
    """A text of a subclass, as numpy's are."""


@pytest.mark.parametrize("make", [list, tuple, np.array, iter, lambda texts: [Text(text) for text in texts]])
def test_ordered_collections_of_texts(make: Callable[[Iterable[str]], Any]) -> None:
    texts = prompt_texts(make(["a cat", "", "ein Hündchen", "two\nlines"]))
    assert texts == ("a cat", "", "ein Hündchen", "two\nlines")
    assert {type(one) for one in texts} == {str}


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("a cat", r"prompts is the text 'a cat'; give a list of texts"),
        (b"a cat", "prompts is a bytes"),
        (None, "prompts is a NoneType"),
        (5, "prompts is a int"),
        ({"a cat"}, "prompts is a set"),
        ({"a cat": 1}, "prompts is a dict"),
        (range(2), "prompts is a range"),
        (np.array([["a"]]), r"prompts\[0\] is array"),
        (np.array(["a", None], dtype=object), r"prompts\[1\] is None, a NoneType"),
        (np.arange(2), r"prompts\[0\] is np.int64\(0\), a int64"),
        ([b"a"], r"prompts\[0\] is b'a', a bytes"),
        (["a", ["b"]], r"prompts\[1\] is \['b'\], a list"),
        (["a\0b"], r"prompts\[0\] holds a NUL byte"),
        (["\udcff"], r"prompts\[0\] is no valid Unicode"),
        (["x" * (LONGEST + 1)], rf"prompts\[0\] has {LONGEST + 1} characters"),
    ],
)
def test_all_else_is_refused(prompts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompt_texts(prompts)


def test_quantize_takes_sequences_alone(tiny_pipe: StableDiffusionPipeline) -> None:
    keys = {"method": "rtn", "steps": 1, "num_prompts": 1}
    with pytest.raises(ValueError, match="prompts is the text 'a cat'"):
        bitbrush.quantize(tiny_pipe, "a cat", **keys)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nul.txt", b"a cat\0\n", "prompt 1 holds a NUL byte"),
        ("binary.txt", bytes(range(256)), "not UTF-8"),
        ("blank.txt", b" \n\t\n", "the file is empty"),
        ("long.txt", b"x" * (LONGEST + 1), f"prompt 1 has {LONGEST + 1} characters"),
        ("deep.json", b"[" * 100_000, r"deep\.json"),
        ("digits.json", b"9" * 5000, r"digits\.json"),
        ("infinite.json", b'{"annotations": [{"image_id": Infinity, "id": 1, "caption": "x"}]}', "damaged"),
        ("wide.csv", b"prompt\n" + b"x" * 200_000, "damaged"),
        ("broken.parquet", b"PAR1 and no more", r"broken\.parquet"),
    ],
)
def test_files_that_are_no_prompts(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompt_file(str(tmp_path / name))


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are POSIX's")
def test_folders_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path, "it is a folder"),
        (tmp_path / "pipe", "no regular file"),
        (Path("/dev/zero"), "no regular"),
    ):
        with pytest.raises(ValueError, match=message):
            read_prompt_file(str(path))
