"""Scripts beside the package import names that exist: nothing else would notice a name that moved."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "docs", "examples", "training")
SCRIPTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def missing(source: str) -> Iterator[str]:
    """``module.name`` of each import from bitbrush that fails."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("bitbrush"):
            continue
        module = importlib.import_module(str(node.module))
        for alias in node.names:
            if not hasattr(module, alias.name) and importlib.util.find_spec(f"{node.module}.{alias.name}") is None:
                yield f"{node.module}.{alias.name}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_script_imports_exists(script: Path) -> None:
    assert not list(missing(script.read_text(encoding="utf-8")))


def test_a_name_that_moved_is_noticed() -> None:
    assert list(missing("from bitbrush.methods import nothing")) == ["bitbrush.methods.nothing"]
