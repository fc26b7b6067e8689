"""Loading of pipelines from folders: every network has all of its tensors, or loading fails with their names."""

import json
import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, ModelMixin, pipelines
from huggingface_hub.errors import StrictDataclassError
from packaging.version import Version
from torch import nn
from transformers import PreTrainedModel

from bitbrush.network.families import DENOISERS
from bitbrush.sources.checkpoint_type import in_type, integer_weights, variant_files, variants, weights_variant
from bitbrush.sources.model_names import MODEL_INDEX
from bitbrush.sources.plain_loading import plain

SAFETY_CHECK = ("safety_checker", "feature_extractor")
KEYS_SHOWN = 3
LARGEST_VALUE = 2.0**24
"""Largest magnitude of a network's weights. Squares and products of larger ones overflow float32: the image is NaN."""
_REPORTING = ("diffusers.models.modeling_utils", "transformers.modeling_utils")
"""Modules whose ``from_pretrained`` reports the tensors it found. Containers of several networks have their own."""
_UNUSABLE = (ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, StrictDataclassError)
"""Errors of libraries that read a configuration or an index of shards with unexpected content."""
OLDEST_DIFFUSERS = "0.38"
"""First version that runs no Python files of a local pipeline folder."""
_TRANSFORMERS_ARGUMENT = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"


def load_pipeline(
    folder: Path,
    dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
    *,
    variant: str | None = None,
    components: Mapping[str, Any] = MappingProxyType({}),
    pipeline_class: type[DiffusionPipeline] = DiffusionPipeline,
) -> DiffusionPipeline:
    """Loads a pipeline from its folder.

    Args:
        folder: Contains ``model_index.json`` and a folder for each component.
        dtype: One dtype for all networks, or dtypes by component name with "default" for the others.
        variant: Variant of the weight files, for networks that have it; see :func:`weights_variant`.
        components: Components that are loaded already, and further arguments of the pipeline, by name.
        pipeline_class: Class of the pipeline; the base class stands for the one that the index names.

    Raises:
        ValueError: The index lists a component without a folder, or a tensor is unusable. Such a tensor is missing, has
            another shape, is NaN or infinite, or belongs to no part of its network.
        OSError: A file is missing or cannot be read.
    """
    require_diffusers()
    entries = {name: entry for name, entry in _components(folder) if name not in components}
    _require_variant(folder, entries, variant)
    parts: dict[str, Any] = {name: None for name, (library, _) in entries.items() if library is None}
    parts |= {**_absent_safety_check(folder, entries), **components}
    for name, (_, kind) in entries.items():
        if name not in parts:
            _require_folder(folder, name, kind)
    parts |= load_networks(folder, dtype, variant=variant, omit=parts)
    if pipeline_class is DiffusionPipeline:  # which ignores given components that a pipeline may lack
        pipeline_class = getattr(diffusers, _json(folder / MODEL_INDEX)["_class_name"])
    with plain():
        pipe: DiffusionPipeline = pipeline_class.from_pretrained(
            folder, **in_type(dtype), **parts, local_files_only=True, trust_remote_code=False
        )
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and name not in parts:
            require_whole(part, name)
    return pipe


def require_diffusers() -> None:
    """Rejects versions of diffusers that run code found in a pipeline's folder.

    Raises:
        ValueError: The installed version is one of them.
    """
    if Version(diffusers.__version__) < Version(OLDEST_DIFFUSERS):
        raise ValueError(
            f"diffusers is {diffusers.__version__}, which runs Python files that lie in a pipeline's folder; install "
            f"diffusers>={OLDEST_DIFFUSERS}"
        )


def load_networks(
    folder: Path,
    dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
    *,
    variant: str | None = None,
    omit: Collection[str] = (),
) -> Iterator[tuple[str, nn.Module]]:
    """Yields name and network of each component whose class reports its tensors, except those in ``omit``.

    Arguments and errors are those of :func:`load_pipeline`.
    """
    for name, (library, kind) in _components(folder):
        network_class = component_class(library, kind) if library and name not in omit else None
        if network_class is not None and reports_tensors(network_class):
            network_dtype = dtype if isinstance(dtype, torch.dtype) else dtype.get(name, dtype["default"])
            network = _load_network(folder, name, network_class, network_dtype, variant)
            require_whole(network, name)
            yield name, network


def _json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: The file is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error})") from error


def component_class(library: str, name: str) -> type | None:
    """Returns the class of a component that ``model_index.json`` lists; None for one of another library."""
    if library not in ("diffusers", "transformers") and not hasattr(pipelines, library):
        return None
    kind = getattr(getattr(pipelines, library, None) or import_module(library), name, None)
    return kind if isinstance(kind, type) else None


def reports_tensors(kind: type) -> bool:
    """Tells whether a class is a network whose ``from_pretrained`` reports missing and unexpected tensors."""
    loader: Any = getattr(kind, "from_pretrained", None)
    return issubclass(kind, ModelMixin | PreTrainedModel) and loader.__func__.__module__ in _REPORTING


def lacks_weights(folder: Path) -> bool:
    """Tells whether a network that the index lists has a folder without weight files."""
    classes = {name: component_class(library, kind) for name, (library, kind) in _components(folder) if library}
    networks = [name for name, kind in classes.items() if kind is not None and reports_tensors(kind)]
    return any(not variants(folder / name) for name in networks if (folder / name).is_dir())


def require_whole(network: nn.Module, name: str) -> None:
    """Checks that all tensors of a network have values with which it can compute.

    Raises:
        ValueError: A tensor has no values, or some are not finite or too large; the message names it.
    """
    if missing := missing_tensors(network):
        raise ValueError(f"{_named(name, network)} {missing}")
    state = network.state_dict()
    if unusable := unusable_values(state):
        raise ValueError(f"{_named(name, network)} {unusable}")


def missing_tensors(network: nn.Module) -> str | None:
    """Describes the tensors without values, which are still on the meta device; None if all have values.

    Loading starts with all tensors on the meta device.
    """
    state = network.state_dict()
    missing = [key for key, tensor in state.items() if tensor.is_meta]
    return f"lacks {_of(len(state), missing)}" if missing else None


def unusable_values(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Describes the tensors with values that are not finite, or beyond ``LARGEST_VALUE``; None if there are none."""
    magnitudes = {key: _largest_magnitude(tensor) for key, tensor in tensors.items()}
    if bad := [key for key, magnitude in magnitudes.items() if not math.isfinite(magnitude)]:
        return f"holds NaN or infinity in {_of(len(tensors), bad)}"
    if bad := [key for key, magnitude in magnitudes.items() if magnitude > LARGEST_VALUE]:
        return f"holds values beyond {LARGEST_VALUE:.0f} in {_of(len(tensors), bad)}, which no trained network has"
    return None


def is_finite(tensor: torch.Tensor) -> bool:
    """Tells whether no value is NaN or infinite."""
    return math.isfinite(_largest_magnitude(tensor))


def _largest_magnitude(tensor: torch.Tensor) -> float:
    """Returns the largest magnitude, or NaN; ``aminmax`` propagates NaN and allocates no memory."""
    if not tensor.is_floating_point() or not tensor.numel():
        return 0.0
    wide = tensor.float() if tensor.itemsize == 1 else tensor  # float8 has no such operator
    return max(abs(end.item()) for end in wide.aminmax())


def _components(folder: Path) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yields name, library and class of each entry of ``model_index.json``; library and class are None if left out."""
    index = _json(folder / MODEL_INDEX)
    if not isinstance(index, dict):
        raise ValueError(f"{folder / MODEL_INDEX} is no table of components")
    kind = index.get("_class_name")
    if not isinstance(kind, str) or not hasattr(diffusers, kind):
        raise ValueError(f"{folder / MODEL_INDEX}: _class_name is {kind!r}, no pipeline of diffusers")
    for name, entry in index.items():
        numbers = isinstance(entry, list) and any(isinstance(one, int | float) for one in entry)
        if isinstance(entry, list) and len(entry) == 2 and not numbers and not name.startswith("_"):
            yield name, (entry[0], entry[1])


def _absent_safety_check(folder: Path, entries: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Returns pipeline arguments for a folder that lists a safety checker but lacks it, as trimmed downloads do."""
    absent = [
        name for name in SAFETY_CHECK if entries.get(name, (None,))[0] is not None and not (folder / name).is_dir()
    ]
    if "safety_checker" not in absent:
        return {}
    warnings.warn(f"{folder} lists a safety checker but does not hold it: images are not checked", stacklevel=2)
    return {**dict.fromkeys(absent), "requires_safety_checker": False}


def _require_variant(folder: Path, names: Collection[str], variant: str | None) -> None:
    places = [folder / name for name in names if (folder / name).is_dir()]
    if variant is not None and not any(variant in variants(place) for place in places):
        raise ValueError(f"none of its components has weights of variant {variant!r}")


def _require_folder(folder: Path, name: str, kind: str) -> None:
    """Raises ValueError for a component without a folder.

    Components of a flat repository lie beside the index, where their configuration describes them.
    """
    if not (folder / name).is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder / MODEL_INDEX} lists {name} ({kind}), but there is no folder {folder / name}")


def _load_network(folder: Path, name: str, kind: Any, dtype: torch.dtype, variant: str | None) -> nn.Module:
    place = folder / name if (folder / name).is_dir() else folder
    is_diffusers = issubclass(kind, ModelMixin)
    options: dict[str, Any] = {"torch_dtype" if is_diffusers else _TRANSFORMERS_ARGUMENT: dtype}
    if not is_diffusers:
        options["ignore_mismatched_sizes"] = (
            True  # so that the library reports them by name, and require_match refuses them
        )
    try:
        _require_unquantized(place, variant, is_denoiser=name in DENOISERS)
        network: nn.Module
        network, report = kind.from_pretrained(
            place,
            variant=weights_variant(place, variant),
            use_safetensors=True if variant_files(place, variant) else None,  # others only where there are none
            local_files_only=True,
            low_cpu_mem_usage=True,
            output_loading_info=True,
            **options,
        )
    except _UNUSABLE as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        if isinstance(error, KeyError | TypeError | AttributeError):
            reason = f"its config.json or its index of shards is malformed ({type(error).__name__}: {reason})"
        raise ValueError(f"{name} ({kind.__name__}): {reason}") from error
    require_match(network, name, report)
    return network


def _require_unquantized(place: Path, variant: str | None, *, is_denoiser: bool) -> None:
    """Rejects weights that another program quantized, where loading would take their integers for values.

    Text encoders may be quantized if their configuration says how.
    """
    config = place / "config.json"
    table = _json(config) if config.is_file() else {}
    if not isinstance(table, dict):
        raise ValueError(f"{config} is no table of settings")
    scheme = table.get("quantization_config")
    if scheme is not None and is_denoiser:
        raise ValueError(f"it is quantized already ({scheme}), and a full-precision model is needed")
    for path in variant_files(place, variant) if scheme is None else ():
        if integers := integer_weights(path):
            raise ValueError(f"{path.name} has integers for weights ({_first(integers)})")


def require_match(network: nn.Module, name: str, report: Mapping[str, Collection[Any]]) -> None:
    """Checks the tensors that a library reports; it only logs mismatches itself.

    Unexpected tensors in a diffusers network mean that its configuration belongs to another network. Text encoders are
    often cut out of larger models, or truncated by their configuration, so they only get a warning.

    Raises:
        ValueError: Tensors are missing, have another shape, or (diffusers) are unexpected.
    """
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{_named(name, network)} lacks {_of(len(network.state_dict()), missing)}")
    for key, shape, expected in report["mismatched_keys"]:
        raise ValueError(f"{_named(name, network)}: {key} has shape {tuple(shape)}, expected is {tuple(expected)}")
    unexpected = sorted(key for key in report["unexpected_keys"] if not key.endswith("position_ids"))
    if unexpected:
        text = f"{_named(name, network)} has no place for tensors in its files ({_first(unexpected)})"
        if isinstance(network, ModelMixin):
            raise ValueError(text)
        warnings.warn(f"{text}: they are left out", stacklevel=2)


def _named(name: str, network: nn.Module) -> str:
    return f"{name} ({type(network).__name__})"


def _of(count: int, keys: Collection[str]) -> str:
    return f"{len(keys)} of its {count} tensors ({_first(keys)})"


def _first(keys: Collection[str]) -> str:
    return ", ".join(list(keys)[:KEYS_SHOWN]) + (", ..." if len(keys) > KEYS_SHOWN else "")
