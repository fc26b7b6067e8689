"""The type in which a checkpoint stores its denoiser, and in which it is loaded."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from packaging.version import Version
from safetensors import SafetensorError, safe_open

_HALF = {"F16": torch.float16, "BF16": torch.bfloat16}
_FLOATS = {*_HALF, "F32", "F64"}

_ARGUMENT = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"


def in_type(dtype: torch.dtype | Mapping[str, torch.dtype]) -> dict[str, Any]:
    """The argument of a pipeline's ``from_pretrained``; by its other name diffusers ignores it, or warns.

    ``dtype``: of all components, or by their names, "default" for the others.
    """
    return {_ARGUMENT: dtype}


def component_types(pipeline: Path, variant: str | None = None) -> dict[str, torch.dtype]:
    """Of every component of a pipeline's folder its :func:`folder_type`, for :func:`in_type`."""
    types = {path.name: folder_type(path, variant) for path in pipeline.iterdir() if path.is_dir()}
    return {**types, "default": torch.float32}


def folder_type(component: Path, variant: str | None) -> torch.dtype:
    """Of a component's folder: half precision if all of its files are, float32 otherwise.

    Files of another kind count as float32, which any type can be loaded as. Raises ValueError for one cut short.
    """
    return _common(kind for path in variant_files(component, variant) for kind in _whole_types(path))


def variant_files(component: Path, variant: str | None) -> list[Path]:
    """The safetensors files of a component's folder that belong to the variant, or to none."""
    return [path for path in sorted(component.glob("*.safetensors")) if _is_of(path.stem, variant)]


def file_type(path: Path) -> torch.dtype:
    """Of a single file: half precision if all of it is, so that nothing is lost by loading it so; else float32.

    What is no safetensors file counts as float32; whoever loads it names the problem.
    """
    try:
        return _common(_types(path))
    except SafetensorError:
        return torch.float32


def _is_of(stem: str, variant: str | None) -> bool:
    return "." not in stem if variant is None else f".{variant}" in stem


def _whole_types(path: Path) -> Iterable[str]:
    try:
        yield from _types(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file ({error})") from error


def _types(path: Path) -> Iterable[str]:
    with safe_open(path, framework="pt") as file:
        yield from {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 - no dictionary


def _common(types: Iterable[str]) -> torch.dtype:
    found = {kind for kind in types if kind in _FLOATS}
    return _HALF.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32
