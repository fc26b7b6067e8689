"""Stored dtype of a checkpoint's networks, and the variants of their weight files."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from packaging.version import Version
from safetensors import SafetensorError, safe_open

_HALF = {"F16": torch.float16, "BF16": torch.bfloat16}
_FLOATS = {*_HALF, "F32", "F64"}

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:-\d+-of-\d+)?"
    r"(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
)
"""Names of weight files; the variant precedes the shard number, or follows it in files of older diffusers."""

_ARGUMENT = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"


def in_type(dtype: torch.dtype | Mapping[str, torch.dtype]) -> dict[str, Any]:
    """Returns the dtype argument of ``from_pretrained`` under the name that the installed diffusers version uses.

    Under its other name diffusers ignores the argument, or warns.

    Args:
        dtype: One dtype for all components, or dtypes by component name with "default" for the others.
    """
    return {_ARGUMENT: dtype}


def variants(component: Path) -> set[str | None]:
    """Returns the variants of a component's weight files; None stands for files without a variant."""
    matches = (_WEIGHTS.fullmatch(path.name) for path in component.glob("*"))
    return {match["variant"] for match in matches if match}


def weights_variant(component: Path, variant: str | None) -> str | None:
    """Chooses the variant to load: the requested one, files without a variant, or the only one there is.

    Args:
        component: Folder of the component.
        variant: Variant that the user asks for, or None.

    Raises:
        ValueError: The choice is ambiguous.
    """
    names = variants(component)
    if variant in names:
        return variant
    if None in names or not names:
        return None
    if variant is None and len(names) == 1:
        return names.pop()
    held = " and ".join(sorted(str(name) for name in names))
    lack = f"none of variant {variant!r}" if variant else "none without a variant"
    raise ValueError(f"{component} holds weights of variant {held}, but {lack}; choose one with --variant")


def component_types(pipeline: Path, variant: str | None = None) -> dict[str, torch.dtype]:
    """Returns the :func:`folder_type` of every component in a pipeline's folder, for :func:`in_type`."""
    types = {path.name: folder_type(path, variant) for path in pipeline.iterdir() if path.is_dir()}
    return {**types, "default": torch.float32}


def folder_type(component: Path, variant: str | None) -> torch.dtype:
    """Returns the dtype of a component's folder: half precision if all of its files are, float32 otherwise.

    Files of other formats count as float32, in which any dtype can be loaded.

    Raises:
        ValueError: A file is truncated.
    """
    return _common(kind for path in variant_files(component, variant) for kind in _whole_types(path))


def variant_files(component: Path, variant: str | None) -> list[Path]:
    """Returns the safetensors files in a component's folder that are loaded for ``variant``."""
    file_variant = weights_variant(component, variant)
    matches = ((path, _WEIGHTS.fullmatch(path.name)) for path in sorted(component.glob("*.safetensors")))
    return [path for path, match in matches if match and match["variant"] == file_variant]


def integer_weights(path: Path) -> list[str]:
    """Returns the names of weights that a safetensors file stores as integers; none for a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 - no dictionary
    except (OSError, SafetensorError):
        return []  # the library that loads the file reports it
    return [key for key, kind in kinds.items() if key.endswith("weight") and kind[0] in "IU"]


def file_type(path: Path) -> torch.dtype:
    """Returns the dtype of a single file: half precision if all of it is, which loses nothing; else float32.

    Files of other formats count as float32; the code that loads them reports the problem.
    """
    try:
        return _common(_types(path))
    except SafetensorError:
        return torch.float32


def _whole_types(path: Path) -> Iterable[str]:
    try:
        yield from _types(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file ({error})") from error


def _types(path: Path) -> Iterable[str]:
    with safe_open(path, framework="pt") as file:
        yield from {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 - no dictionary


def _common(types: Iterable[str]) -> torch.dtype:
    kinds = {kind for kind in types if kind in _FLOATS}
    return _HALF.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32
