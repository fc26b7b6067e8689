"""The documentation says what is so: links, commands, generated pages, and README."""

import pkgutil
import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import bitbrush
import bitbrush.bench.metrics
from bitbrush.cli import app
from bitbrush.methods import METHODS
from bitbrush.methods.recipe import KEYS
from docs.generate import pages
from docs.places import PAGES, ROOT, relinked, site_files, targets

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
TEXTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "training").rglob("README.md")]
)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands(markdown: str) -> Iterator[list[str]]:
    """Yields the words of every `bitbrush` command in the shell blocks of a page."""
    for language, block in FENCE.findall(markdown):
        if language in {"sh", ""}:
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "bitbrush" in words:
                    yield words[words.index("bitbrush") + 1 :]


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files(name: str) -> None:
    generated = {f"docs/{uri}" for uri in pages()}
    assert not [path for path in targets(read(name), name) if not (ROOT / path).exists() and path not in generated]


@pytest.mark.parametrize("name", TEXTS)
def test_code_files_that_pages_name_exist(name: str) -> None:
    named = re.findall(r"`([\w-]+/[\w./-]+\.(?:py|cpp|j2))`", read(name))
    assert not [path for path in named if not any((ROOT / base / path).is_file() for base in ("", "src/bitbrush"))]


@pytest.mark.parametrize("name", TEXTS)
def test_commands_and_options_that_pages_show_exist(name: str) -> None:
    known: Any = typer.main.get_command(app)
    for words in commands(read(name)):
        assert words[0] in known.commands, words
        options = {option for param in known.commands[words[0]].params for option in param.opts}
        assert not [word for word in words if word.startswith("-") and word not in options], words


@pytest.mark.parametrize("name", TEXTS)
def test_python_that_pages_show_compiles_and_names_what_exists(name: str) -> None:
    for language, block in FENCE.findall(read(name)):
        if language == "python":
            compile(block, name, "exec")
            assert set(re.findall(r"\bbitbrush\.(\w+)\(", block)) <= set(bitbrush.__all__)


def test_every_page_is_in_the_navigation() -> None:
    def leaves(node: Any) -> Iterator[str]:
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from leaves(child)
        if isinstance(node, str):
            yield node

    committed = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    others = {place for place in site_files().values() if place.endswith(".md")}
    assert sorted(leaves(yaml.safe_load(read("mkdocs.yml"))["nav"])) == sorted(committed | others | set(pages()))


def test_generated_pages_are_complete() -> None:
    made = pages()
    assert all(f"| `{name}` |" in made["reference/recipe.md"] and key.summary for name, key in KEYS.items())
    for name, method in METHODS.items():
        section = made["reference/methods.md"].partition(f"## `{name}`")[2].partition("\n## ")[0]
        assert all(stage.summary in section for stage in method.stages)
    known: Any = typer.main.get_command(app)
    for name, command in known.commands.items():
        section = made["reference/commands.md"].partition(f"## `bitbrush {name}`")[2].partition("\n## ")[0]
        options = [param.metavar or option for param in command.params for option in param.opts]
        assert options
        assert not [option for option in options if option not in section]
    assert {f"bitbrush.{name}" for name in bitbrush.__all__} - {"bitbrush.METHODS"} <= set(
        re.findall(r"^::: (\S+)", made["reference/api.md"], re.MULTILINE)
    )
    modules = pkgutil.iter_modules(bitbrush.bench.metrics.__path__)
    assert all(f"::: bitbrush.bench.metrics.{one.name}\n" in made["reference/metrics.md"] for one in modules)
    assert all(f"## `{path.name}`" in made["examples.md"] for path in (ROOT / "examples").glob("*.py"))


def test_links_out_of_docs_lead_to_the_same_files_on_the_site() -> None:
    assert relinked("[a](docs/models.md#memory)", "index.md") == "[a](models.md#memory)"
    assert relinked("[a](../../benchmarks/results/ablation-emoji-sd.json)", "how-to/x.md") == (
        "[a](../records/ablation-emoji-sd.json)"
    )
    assert relinked("[a](../README.md) [b](#c) [d](https://e.f/g.md)", "methods.md") == (
        "[a](index.md) [b](#c) [d](https://e.f/g.md)"
    )
    assert relinked("[a](../examples)", "tutorial.md") == f"[a]({PAGES['examples']})"


def test_the_readme_is_short() -> None:
    lines = read("README.md").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120
    tables = [line for line in lines if line.startswith("|---")]
    assert [line.count("---") for line in tables] == [3]


def test_the_readmes_python_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It runs as it stands but for the number of steps and prompts, which make it quick."""
    (code,) = [block for language, block in FENCE.findall(read("README.md")) if language == "python"]
    assert len([line for line in code.splitlines() if line]) <= 8
    quick = {"method": "rtn", "steps": 2, "num_prompts": 1}
    full = bitbrush.quantize
    monkeypatch.setattr(bitbrush, "quantize", lambda *given, **keys: full(*given, **{**keys, **quick}), raising=False)
    load = bitbrush.load

    def load_quick(directory: str) -> Any:
        pipe = load(directory)
        return partial(pipe, num_inference_steps=2)

    monkeypatch.setattr(bitbrush, "load", load_quick, raising=False)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - our own README
    assert (tmp_path / "apple.png").exists()


@pytest.mark.parametrize("name", TEXTS)
def test_lists_stand_apart(name: str) -> None:
    """MkDocs takes a list for text where no blank line stands before it."""
    text = FENCE.sub("", read(name))
    assert not re.findall(r"^(?!\s|- |\d+\. |<).+\n(?:- |\d+\. ).*", text, re.MULTILINE)
