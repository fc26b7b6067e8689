"""Removal of this machine's paths from saved configurations."""

import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

SOURCES = ("_name_or_path", "name_or_path")
"""Keys under which diffusers and transformers record what a component was loaded from."""
CONFIGURATIONS = ("model_index.json", "*config.json", "special_tokens_map.json")


def remove_local_paths(root: Path) -> None:
    """Removes sources and absolute paths from the configurations in a folder; loading needs none of them."""
    for path in (path for pattern in CONFIGURATIONS for path in root.rglob(pattern)):
        content = json.loads(path.read_text(encoding="utf-8"))
        portable = without_paths(content)
        if portable != content:
            path.write_text(json.dumps(portable, indent=2) + "\n", encoding="utf-8")


def without_paths(content: Any) -> Any:
    """Returns a configuration without sources and absolute paths, at any depth."""
    if not isinstance(content, dict):
        return content
    return {key: without_paths(value) for key, value in content.items() if key not in SOURCES and not _is_path(value)}


def _is_path(value: Any) -> bool:
    kinds = (PurePosixPath, PureWindowsPath)
    return isinstance(value, str) and len(value) > 1 and any(kind(value).is_absolute() for kind in kinds)
