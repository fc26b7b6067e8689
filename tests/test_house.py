"""House rules a machine can check: sizes, broad excepts, paths of one machine."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FUNCTION_LINES = 60
FILE_LINES = 400
FOLDERS = ("src", "tests", "training", "benchmarks", "examples", "docs", ".ci")
TEXT = {".json", ".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".cfg", ".html", ".j2", ".jinja", ".sh"}
EXCUSED = re.compile(r"# noqa: BLE001 - \w+ \w+")
MACHINE_PATH = re.compile("(?<![A-Za-z0-9_.-])/(?:work|tmp|home|Users|root)/")


def sources() -> list[Path]:
    """Every text file of the project: the root's own and those of its folders, caches of the training apart."""
    files = [path for path in ROOT.iterdir() if path.is_file() and (path.suffix in TEXT or path.name == "Makefile")]
    files += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    files = [path for path in files if not {"cache", "runs", "__pycache__"} & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in files if path.suffix in TEXT or path.name in {"Makefile", "run"})


def python_files(*folders: str) -> list[Path]:
    return [path for path in sources() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]


def long_functions(source: str) -> Iterator[str]:
    """Functions over the limit, docstring included, decorators and signature apart: a command's is its options."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
            if lines > FUNCTION_LINES:
                yield f"{node.name} has {lines} lines, the limit is {FUNCTION_LINES}: give a part of it a name"


def broad_excepts(source: str) -> Iterator[str]:
    """`except:` or Exception, BaseException caught, unless raised again or excused: `# noqa: BLE001 - a reason`."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = [kind for kind in caught if kind is None or ast.unparse(kind) in {"Exception", "BaseException"}]
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            if broad and not raises and not EXCUSED.search(lines[node.lineno - 1]):
                yield f"line {node.lineno}: name the exceptions that can be answered here"


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", python_files("src"), ids=identify)
def test_source_is_small_and_catches_by_name(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not [*long_functions(source), *broad_excepts(source)]


def test_no_file_is_too_long() -> None:
    lines = {identify(path): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(*FOLDERS)}
    assert not {name: count for name, count in lines.items() if count > FILE_LINES}


def test_no_path_of_one_machine() -> None:
    found = [identify(path) for path in sources() if MACHINE_PATH.search(path.read_text(encoding="utf-8"))]
    assert not found


def test_the_checks_see() -> None:
    assert list(long_functions("def f():\n" + "    x = 1\n" * (FUNCTION_LINES + 1)))
    assert not list(long_functions("def f(\n    x,\n):\n" + "    x = 1\n" * FUNCTION_LINES))
    for handler in ("except:", "except Exception:  # noqa: BLE001", "except (ValueError, BaseException) as error:"):
        assert list(broad_excepts(f"try:\n    f()\n{handler}\n    pass"))
    excused = "except Exception as error:  # noqa: BLE001 - handed to the thread that waits\n    report(error)"
    for handler in ("except ValueError:\n    pass", "except BaseException:\n    undo()\n    raise", excused):
        assert not list(broad_excepts(f"try:\n    f()\n{handler}"))
    assert MACHINE_PATH.search("see /" + "work/main")
    assert not MACHINE_PATH.search("docs/work/main and https://example.org/home/x")


def test_the_oldest_packages_are_the_lower_bounds() -> None:
    """Those that are tried by `make test-oldest`; of the extras, those that it installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = map(Requirement, [*project["dependencies"], *extras["parquet"], *extras["lora"]])
    bounds = {one.name: Version(str(one.specifier).removeprefix(">=")) for one in requirements}
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pins = {name: Version(pin) for name, _, pin in (line.partition("==") for line in lines if "==" in line)}
    assert pins == bounds
