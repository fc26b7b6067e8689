"""Exit 0 if every file that this environment's packages list is there in full: `make setup` asks before adopting it.

pip lists a package's files, with their sizes, in its RECORD. One killed half-way leaves files missing or cut short, and
pip itself then takes the package for installed. Byte code is not looked at: Python writes it anew.
"""

import sys
from importlib import metadata


def damage(distribution: metadata.Distribution) -> str | None:
    """What is wrong with an installed package, or None."""
    name = distribution.metadata["Name"]
    if name is None or distribution.files is None:
        return f"{name or distribution}: no list of its files"
    for file in distribution.files:
        path = file.locate()
        if file.suffix == ".pyc":
            continue
        if not path.exists():
            return f"{name}: {file} is missing"
        if file.size is not None and path.stat().st_size != file.size:
            return f"{name}: {file} has {path.stat().st_size} bytes instead of {file.size}"
    return None


if __name__ == "__main__":
    if sys.prefix == sys.base_prefix or not any(metadata.distributions(name="pip")):
        sys.exit("not a virtual environment with pip")
    found = [problem for problem in map(damage, metadata.distributions()) if problem]
    sys.exit("\n".join(found) or 0)
