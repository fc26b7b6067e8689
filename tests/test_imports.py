"""The rooms of docs/architecture.md: who may import whom, who may know diffusers, and that importing does nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitbrush

PACKAGE = Path(bitbrush.__file__).parent

_TO_METHODS = {"numerics", "session", "timeline", "network", "calibration", "rounding", "methods"}
_TO_QUANTIZATION = _TO_METHODS | {"sources", "runtime", "quantization"}
MAY_IMPORT: dict[str, set[str]] = {
    "numerics": set(),
    "session": {"numerics"},
    "timeline": {"numerics", "session"},
    "network": {"numerics", "session", "timeline"},
    "sources": {"session", "timeline", "network", "zoo"},
    "calibration": {"numerics", "session", "timeline", "network"},
    "rounding": {"numerics", "session", "timeline", "network", "calibration"},
    "methods": _TO_METHODS,
    "runtime": {"numerics", "session", "timeline", "network"},
    "quantization": _TO_METHODS | {"sources", "runtime"},
    "artifact": _TO_QUANTIZATION | {"zoo"},
    "bench": _TO_QUANTIZATION | {"artifact", "zoo"},
    "zoo": set(),
}
BENCH_MAY_IMPORT: dict[str, set[str]] = {
    "metrics": set(),
    "peers": set(),
    "networks": {"metrics"},
    "images": {"metrics", "networks"},
    "pages": {"metrics"},
    "experiments": {"metrics", "networks", "images", "pages", "peers"},
}
"""Rooms of `bench/`; a folder of `experiments/` may import no other one, but what stands beside the folders."""
FACES = {"__init__", "__main__", "api", "cli"}  # may import everything
KNOW_DIFFUSERS = {"network", "sources", "quantization", "artifact", "bench"} | FACES
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PICKLING_CALLS = {"torch.save", "torch.load"}
_DECLARATIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Pass)


def violations(source: str, module: str) -> list[str]:
    """What `module` (a dotted name below bitbrush: "timeline.tracker", "cli") does against the rules, a line each."""
    tree = ast.parse(source)
    room = module.partition(".")[0]
    if room not in MAY_IMPORT and room not in FACES:
        return [f"{module}: room {room!r} is not in the table MAY_IMPORT; add it there and to docs/architecture.md"]
    problems = [f"{module}:{line}: {reason}" for line, reason in _import_violations(tree, module, room)]
    problems += [f"{module}:{line}: {reason}" for line, reason in _pickling(tree)]
    if room == "bench":
        problems += [f"{module}:{line}: {reason}" for line, reason in _bench_violations(tree, module)]
    if room not in FACES:
        problems += [f"{module}:{line}: runs at import" for line in _import_effects(tree)]
    return problems


def _imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything imported, at any depth, under TYPE_CHECKING too."""
    parents = ["bitbrush", *module.split(".")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def _import_violations(tree: ast.AST, module: str, room: str) -> Iterator[tuple[int, str]]:
    for line, name in _imports(tree, module):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top == "bitbrush" and room not in FACES and target not in MAY_IMPORT[room] | {room}:
            yield line, f"{room} may not import bitbrush.{target}"
        if top in {"diffusers", "transformers"} and room not in KNOW_DIFFUSERS:
            yield line, f"{room} may not import {top}; only {', '.join(sorted(KNOW_DIFFUSERS - FACES))} may"
        if top in PICKLERS:
            yield line, f"{top}: no pickle anywhere"


def _bench_violations(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    _, room, *inner = module.split(".")
    for line, name in _imports(tree, module):
        target, *deeper = name.removeprefix("bitbrush.bench.").split(".") if "bitbrush.bench." in name else [room]
        if room in BENCH_MAY_IMPORT and target not in BENCH_MAY_IMPORT[room] | {room}:
            yield line, f"bench.{room} may not import bench.{target}"
        experiment = deeper[0] if room == target == "experiments" and deeper else ""
        is_experiment = (PACKAGE / "bench" / "experiments" / experiment / "__init__.py").exists()
        if is_experiment and experiment not in ("", *inner[:-1]):
            yield line, f"{module} may not import the experiment {experiment}"


def _pickling(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in PICKLING_CALLS:
            yield node.lineno, f"{ast.unparse(node)}: no pickle anywhere; arrays go to safetensors"


def _import_effects(tree: ast.Module) -> Iterator[int]:
    """Lines of module-level statements that do more than declare: calls for effect, loops, writes elsewhere."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=targets) if all(isinstance(target, ast.Name | ast.Tuple) for target in targets):
                pass
            case ast.AnnAssign(target=ast.Name()) | ast.Expr(value=ast.Constant()):
                pass
            case ast.If(test=test) if ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
                pass
            case _ if not isinstance(node, _DECLARATIONS):
                yield node.lineno


def modules() -> list[tuple[str, Path]]:
    """(dotted name below bitbrush, path) of every module; a package is named after its room: "timeline.__init__"."""
    return [(".".join(path.relative_to(PACKAGE).with_suffix("").parts), path) for path in sorted(PACKAGE.rglob("*.py"))]


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_module_keeps_to_its_room(module: str, path: Path) -> None:
    assert not violations(path.read_text(encoding="utf-8"), module)


WITHOUT_POSIX = """
import importlib, sys
modules, posix = sys.argv[1].split(), set(sys.argv[2].split())
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in posix:
            raise ModuleNotFoundError(f"no module named {name!r} on Windows", name=name)
for name in modules:  # other packages, which have their own ways without
    importlib.import_module(name)
for name in [name for name in sys.modules if name in posix or name.partition(".")[0] == "bitbrush"]:
    del sys.modules[name]
sys.meta_path.insert(0, Blocked())
for name in modules:
    importlib.import_module(name)
"""


def test_imports_nothing_that_windows_lacks() -> None:
    names = [f"bitbrush.{name.removesuffix('.__init__')}" for name, _ in modules() if name != "__init__"]
    posix = "fcntl grp nis pty pwd readline resource spwd syslog termios tty"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, " ".join(names), posix], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_folder_is_a_room() -> None:
    folders = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/**/*.py")}
    assert folders <= {*MAY_IMPORT, *FACES}


def test_the_table_has_no_cycle() -> None:
    settled: set[str] = set()
    while ready := {room for room, below in MAY_IMPORT.items() if below - {room} <= settled} - settled:
        settled |= ready
    assert settled == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("numerics.affine", "import bitbrush.timeline.plan", "numerics may not import bitbrush.timeline"),
        ("numerics.affine", "from bitbrush.network import layers", "numerics may not import bitbrush.network"),
        ("numerics.affine", "from ..runtime import reference", "numerics may not import bitbrush.runtime"),
        ("timeline.tracker", "from bitbrush import network", "timeline may not import bitbrush.network"),
        ("timeline.tracker", "def f():\n    from bitbrush.cli import main", "timeline may not import bitbrush.cli"),
        ("runtime.reference", "from bitbrush.methods import pcr", "runtime may not import bitbrush.methods"),
        ("zoo.__init__", "from bitbrush.numerics import affine", "zoo may not import bitbrush.numerics"),
        ("network.unet", "from bitbrush import __version__", "network may not import bitbrush.__version__"),
        ("timeline.tracker", "if TYPE_CHECKING:\n    from diffusers import SchedulerMixin", "may not import diffusers"),
        ("methods.pcr", "import transformers.models.clip", "may not import transformers"),
        ("artifact.files", "import pickle", "no pickle anywhere"),
        ("artifact.files", "def f(x):\n    torch.save(x, 'x.pt')", "torch.save: no pickle anywhere"),
        ("cli", "torch.load('x.pt')", "torch.load: no pickle anywhere"),
        ("network.unet", "torch.manual_seed(0)", "runs at import"),
        ("network.unet", "REGISTRY['unet'] = 1", "runs at import"),
        ("network.unet", "for x in range(3):\n    pass", "runs at import"),
        ("bench.metrics.psnr", "import bitbrush.bench.images.generation", "bench.metrics may not import bench.images"),
        ("bench.pages.plots", "from bitbrush.bench.experiments import demo", "bench.pages may not import bench.exp"),
        ("bench.experiments.ablate.run", "from ..bench import run", "may not import the experiment bench"),
        ("bench.experiments.results", "from .bench import run", "may not import the experiment bench"),
        ("helpers", "X = 1", "not in the table"),
    ],
)
def test_the_checker_sees(module: str, source: str, reason: str) -> None:
    assert any(reason in problem for problem in violations(source, module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("numerics.affine", "from .ranges import observe\nfrom bitbrush.numerics import packing\nimport torch"),
        (
            "network.unet",
            '"""Doc."""\nfrom diffusers import UNet2DConditionModel\nfrom ..timeline.tracker import TRACKER',
        ),
        ("methods.pcr", "from bitbrush.rounding import adaround\nfrom bitbrush.calibration import ranges"),
        ("cli", "import bitbrush.bench.experiments.bench.report\napp.add_typer(other)"),
        ("timeline.tracker", "import diffusers_like_name_but_another\nX, Y = 1, 2\nZ: int = 3"),
        ("bench.experiments.ablate.run", "from ..results import finite\nfrom .cells import Cell"),
        ("bench.clip", "from transformers import CLIPModel\ndef keep(model):\n    model.save(1)"),
    ],
)
def test_the_checker_lets_pass(module: str, source: str) -> None:
    assert not violations(source, module)
