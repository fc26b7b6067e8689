"""Exit 0 if a wheel holds every file of the package and no other: ``python .ci/wheel_whole.py dist/*.whl``.

Code, the bundled models' weights, prompts and NOTICE, templates, kernels' sources, and ``py.typed``.
"""

import sys
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "bitbrush"

if __name__ == "__main__":
    there = set(zipfile.ZipFile(sys.argv[1]).namelist())
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    wanted = {path.relative_to(PACKAGE.parent).as_posix() for path in files}
    packed = {name for name in there if name.startswith("bitbrush/")}
    found = [f"{name} is missing" for name in sorted(wanted - packed)]
    found += [f"{name} is no file of the package" for name in sorted(packed - wanted)]
    sys.exit("\n".join(found) or 0)
