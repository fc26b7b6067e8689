"""Digests stay what they were: folders of earlier versions are named and checked by them."""

import hashlib
from pathlib import Path

from bitbrush.session.digests import file_digest, json_digest


def test_the_order_of_keys_decides_nothing() -> None:
    assert json_digest({"b": [1, None], "a": "x"}) == json_digest({"a": "x", "b": [1, None]})
    assert json_digest({"a": 1}) != json_digest({"a": 1.5})


def test_they_are_sha256_of_the_text_and_of_the_file(tmp_path: Path) -> None:
    text = b'{"a": 1, "b": [true]}'
    (tmp_path / "file").write_bytes(text)
    expected = hashlib.sha256(text).hexdigest()
    assert json_digest({"b": [True], "a": 1}) == expected
    assert file_digest(tmp_path / "file") == expected
