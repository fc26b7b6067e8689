"""Documents of a pipeline checked against the classes that read them, before those do.

diffusers and transformers check few values. What they would run, download or allocate is refused here, and a value of
another type is named by file and field.
"""

import inspect
import math
import types
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from transformers import (
    FeatureExtractionMixin,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.image_processing_base import ImageProcessingMixin

from bitbrush.artifact.documents import ArtifactError, DamagedError, require_schema, unknown_keys
from bitbrush.artifact.folder import VerifiedFolder
from bitbrush.artifact.manifest import newer_versions_named
from bitbrush.artifact.quantization_config import QUANTIZATION
from bitbrush.artifact.schema import QuantizationEntry, TokenizerConfiguration, WeightIndex
from bitbrush.artifact.tensor_file import TensorFile
from bitbrush.sources.model_names import MODEL_INDEX
from bitbrush.sources.networks import KEYS_SHOWN, component_class

NETWORKS = (ModelMixin, PreTrainedModel)
KINDS = (
    *NETWORKS,
    SchedulerMixin,
    PreTrainedTokenizerBase,
    FeatureExtractionMixin,
    ImageProcessingMixin,
    ProcessorMixin,
)
RUNNING = frozenset(
    (
        "auto_map",
        "custom_pipelines",
        "custom_pipeline",
        "trust_remote_code",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "use_kernels",
        "kernel_config",
        "quantization_config",
    )
)
"""Keys that make a library run code of the folder or of the hub, or pass tensors to another one."""
INDEX_SETTINGS = ("_class_name", "_diffusers_version", "_name_or_path")
LARGEST = 2**24
"""Largest number in a configuration; vocabularies and positions are smaller."""
SMALLEST = 1e-15
"""Smallest magnitude of a number that is not zero; epsilons of 1e-12 exist."""
POSITIVE = ("scaling_factor", "scale_factor", "eps", "epsilon")
"""Endings of settings by which is divided."""
LONGEST = 4096
"""Most elements of a list, and characters of a text, in a configuration."""
FLOATS = ("F64", "F32", "F16", "BF16")


def require_fitting(folder: VerifiedFolder, quantized: Collection[str], versions: Mapping[str, str]) -> None:
    """Checks the documents of an artifact against each other and against the classes of its components.

    Args:
        folder: Folder with verified hashes.
        quantized: Names of the quantized networks, the denoiser first.
        versions: Versions of the libraries that wrote the documents, by name.

    Raises:
        ArtifactError: A document is of another class, or has a value of another type or size; the message names the
            file and the field.
    """
    classes = component_classes(folder)
    for name in quantized:
        if not issubclass(classes.get(name, object), NETWORKS):
            raise ArtifactError(f"{folder.root / MODEL_INDEX} lists no {name}, which is quantized; quantize again")
    for name in folder.documents:
        owner = PurePosixPath(name).parent.name
        if owner and owner not in classes:
            raise ArtifactError(f"{folder.root / name} belongs to no component of {MODEL_INDEX}; remove it")
    for name, kind in classes.items():
        _require_configuration(folder, name, kind, versions, quantized=name in quantized)
        if issubclass(kind, NETWORKS) and name not in quantized:
            _require_floats(folder.root / name)
    configurations = {f"{name}/config.json" for name in quantized}
    for name, document in folder.documents.items():
        _require_inert(document, folder.root / name, allowed=QUANTIZATION if name in configurations else "")
        if name.endswith(".safetensors.index.json"):
            _require_shards(folder, name, document)
        if name.endswith("/tokenizer_config.json"):
            require_schema(document, TokenizerConfiguration, folder.root / name)


def require_fitting_denoiser(folder: VerifiedFolder, part: str, versions: Mapping[str, str]) -> None:
    """Checks the configuration of a denoiser that is read without its pipeline.

    Args:
        folder: Folder with verified hashes.
        part: Folder of the denoiser within it, or "".
        versions: Versions of the libraries that wrote it.

    Raises:
        ArtifactError: The class is no network of diffusers, or a value does not fit it.
    """
    name = f"{part}/config.json".lstrip("/")
    document = folder.documents.get(name)
    given = document.get("_class_name") if isinstance(document, dict) else None
    kind = component_class("diffusers", given) if isinstance(given, str) and given.isidentifier() else None
    if kind is None or not issubclass(kind, ModelMixin):
        raise ArtifactError(f"{folder.root / name}: _class_name is {given!r}, which is no network of this diffusers")
    _require_configuration(folder, part, kind, versions, quantized=True)
    _require_inert(document, folder.root / name, allowed=QUANTIZATION)


def component_classes(folder: VerifiedFolder) -> dict[str, type]:
    """Returns the classes of the components that ``model_index.json`` lists.

    Raises:
        ArtifactError: The index is no table of texts, or a class is no pipeline, network, scheduler or processor of
            diffusers and transformers.
    """
    path = folder.root / MODEL_INDEX
    index = folder.documents.get(MODEL_INDEX)
    if not isinstance(index, dict):
        raise ArtifactError(f"{path} is no table of components; quantize again")
    name = index.get("_class_name")
    pipeline = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(pipeline, type) and issubclass(pipeline, DiffusionPipeline)):
        raise ArtifactError(f"{path}: _class_name is {name!r}, which is no pipeline of this diffusers")
    arguments = inspect.signature(pipeline).parameters
    classes = {}
    for key, entry in index.items():
        if key.startswith("_"):
            if key not in INDEX_SETTINGS or not isinstance(entry, str):
                raise ArtifactError(f"{path}: {key} is {entry!r}; a text is expected of {', '.join(INDEX_SETTINGS)}")
        elif key not in arguments:
            raise ArtifactError(f"{path}: {key} is no argument of {name}")
        elif isinstance(entry, list) and not (entry and all(map(_is_number, entry))):
            if entry != [None, None]:
                classes[key] = _class(path, key, entry)
        elif not isinstance(entry, bool | int | float | str | list | None):
            raise ArtifactError(f"{path}: {key} is {entry!r}; a component is a list of library and class")
    return classes


def _class(path: Path, key: str, entry: list[Any]) -> type:
    if len(entry) != 2 or not all(isinstance(text, str) for text in entry):
        raise ArtifactError(f"{path}: {key} is {entry!r}; a component is a list of library and class")
    library, name = entry
    kind = component_class(library, name) if library.isidentifier() and name.isidentifier() else None
    if kind is None or not issubclass(kind, KINDS):
        raise ArtifactError(
            f"{path}: {key} is {name!r} of {library!r}, which is no network, scheduler, tokenizer or processor of "
            "diffusers and transformers"
        )
    return kind


def _require_configuration(
    folder: VerifiedFolder, name: str, kind: Any, versions: Mapping[str, str], *, quantized: bool
) -> None:
    """Checks a component's configuration against the arguments of its class."""
    file = "scheduler_config.json" if issubclass(kind, SchedulerMixin) else "config.json"
    if not issubclass(kind, (*NETWORKS, SchedulerMixin)):
        return
    path = folder.root / name / file
    document = folder.documents.get(f"{name}/{file}".lstrip("/"))
    if not isinstance(document, dict):
        raise ArtifactError(f"{path} is missing or no table; quantize or copy the artifact again")
    if issubclass(kind, PreTrainedModel):
        model_type = getattr(kind.config_class, "model_type", None)
        if document.get("model_type") != model_type:
            raise ArtifactError(f"{path}: model_type is {document.get('model_type')!r}; {kind.__name__}'s {model_type}")
        hints = _arguments(kind.config_class)
    else:
        if document.get("_class_name") != kind.__name__:
            raise ArtifactError(
                f"{path}: _class_name is {document.get('_class_name')!r}; {MODEL_INDEX} lists {kind.__name__}"
            )
        hints = _arguments(kind)
    if quantized:
        entry = document.get(QUANTIZATION)
        with newer_versions_named(versions):
            known = require_schema(entry, QuantizationEntry, f"{path}, {QUANTIZATION}")
            if unknown := next(unknown_keys(entry, known, QUANTIZATION), None):
                raise DamagedError(path, f"{unknown} is no key that this bitbrush knows")
    _require_complete(document, kind, versions, path)
    for key, value in document.items():
        if key in hints:
            _require_value(value, hints[key], f"{path}: {key}")


def _require_complete(document: Mapping[str, Any], kind: Any, versions: Mapping[str, str], path: Path) -> None:
    """Rejects a configuration without all settings that the library, in the version that wrote it, writes.

    Another version may declare others, so only a configuration of the installed version is checked.
    """
    library = kind.__module__.partition(".")[0]
    if versions.get(library) != import_module(library).__version__:
        return
    if missing := [key for key in _written(kind) if key not in document]:
        raise ArtifactError(
            f"{path} lacks {', '.join(missing[:KEYS_SHOWN])}, which {library} {versions[library]} writes for a "
            f"{kind.__name__}; quantize or copy it again"
        )


@cache
def _written(kind: Any) -> tuple[str, ...]:
    """Returns the settings that a library writes for each component of a class, whatever their values."""
    if not issubclass(kind, PreTrainedModel):
        return tuple(key for key in _arguments(kind) if key not in getattr(kind, "ignore_for_config", ()))
    own = kind.config_class().to_dict().keys() - PretrainedConfig().to_dict().keys()
    return tuple(key for key in _arguments(kind.config_class) if key in own)


@cache
def _arguments(kind: Any) -> dict[str, tuple[Any, Any]]:
    """Returns annotation and default of each argument that a class is configured with."""
    try:
        hints = get_type_hints(kind.__init__, localns={"torch": torch})
    except NameError:  # a name that its module imports for type checkers alone
        hints = {}
    parameters = inspect.signature(kind).parameters
    return {
        name: (hints.get(name, one.annotation), one.default)
        for name, one in parameters.items()
        if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    }


def _require_value(value: Any, argument: tuple[Any, Any], place: str) -> None:
    """Checks a value against an argument's annotation, or the type of its default where that says nothing."""
    annotation, default = argument
    allowed = set(_flat(annotation)) - {Any, inspect.Parameter.empty}
    if not allowed:
        allowed = {type(default)} if isinstance(default, bool | int | float | str | list | tuple | dict) else set()
        if allowed & {list, tuple, dict}:
            allowed = set()
    texts = {one for one in allowed if isinstance(one, str)}
    if texts and isinstance(value, str) and value not in texts and str not in allowed:
        raise ArtifactError(f"{place} is {value!r}; one of {', '.join(sorted(texts))} is expected")
    infinite = isinstance(default, float) and math.isinf(default)
    scalars = allowed if not isinstance(value, dict) or allowed & {bool, int, float, str} else set()
    for one in _leaves(value, place):
        if isinstance(one, float) and not SMALLEST <= abs(one or 1) <= LARGEST and not (infinite and one == default):
            raise ArtifactError(f"{place} is {value!r:.80}; a finite number of a usual magnitude is expected")
        if place.endswith(POSITIVE) and default is not None and (one is None or (_is_number(one) and one <= 0)):
            raise ArtifactError(f"{place} is {value!r:.80}; a positive number is expected")
        if one is None and (default is None or type(None) in allowed or (bool in allowed and not default)):
            continue
        if scalars and not _is_one_of(one, scalars):
            raise ArtifactError(f"{place} is {value!r:.80}; {_expected(allowed)} is expected")
    if isinstance(value, list) and allowed and not allowed & {list, tuple}:
        raise ArtifactError(f"{place} is {value!r:.80}; {_expected(allowed)} is expected")
    if isinstance(value, dict) and allowed and not any(map(_is_table, allowed)):
        raise ArtifactError(f"{place} is {value!r:.80}; {_expected(allowed)} is expected")
    if value == [] and isinstance(default, tuple | list) and default:
        raise ArtifactError(f"{place} is empty")


def _is_table(annotation: Any) -> bool:
    """Tells whether a type is written as a table: a dictionary, or the configuration of an inner network."""
    configuration = isinstance(annotation, type) and issubclass(annotation, PretrainedConfig)
    return annotation is dict or is_typeddict(annotation) or configuration


def _is_number(value: Any) -> bool:
    """Tells whether a value is a number and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_one_of(value: Any, allowed: set[Any]) -> bool:
    if isinstance(value, bool) or not isinstance(value, int):
        kinds = allowed | ({str} if any(isinstance(one, str) for one in allowed) else set())
        return type(value) in kinds
    return bool({int, float} & allowed)


def _expected(allowed: set[Any]) -> str:
    names = ("null" if one is type(None) else getattr(one, "__name__", repr(one)) for one in allowed)
    return " or ".join(sorted(names))


def _flat(annotation: Any) -> Iterator[Any]:
    """Yields the plain types, containers and literal values of an annotation."""
    origin = get_origin(annotation)
    if isinstance(annotation, str):
        return  # unresolved
    if origin is Literal:
        yield from get_args(annotation)
        return
    if origin in (Union, types.UnionType) or origin is None:
        inner = get_args(annotation)
        if not inner:
            yield annotation
    else:
        yield origin
        inner = get_args(annotation)
    for one in inner:
        if one is not Ellipsis:
            yield from _flat(one)


def _leaves(value: Any, place: str) -> Iterator[Any]:
    """Yields the scalars of a value and checks their sizes."""
    if isinstance(value, list | dict):
        if len(value) > LONGEST:
            raise ArtifactError(f"{place} has {len(value)} elements; at most {LONGEST} are expected")
        for one in value.values() if isinstance(value, dict) else value:
            yield from _leaves(one, place)
        return
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ArtifactError(f"{place} is {value:.6g}; at most {LARGEST} is expected")
    if isinstance(value, str) and len(value) > LONGEST:
        raise ArtifactError(f"{place} has {len(value)} characters; at most {LONGEST} are expected")
    yield value


def _require_floats(place: Path) -> None:
    """Rejects weights and biases of whole numbers, which a library would convert without a word."""
    for file in sorted(place.glob("*.safetensors")):
        for name, entry in TensorFile(file).entries.items():
            if name.endswith((".weight", ".bias")) and entry.dtype not in FLOATS:
                raise ArtifactError(f"{file}: tensor {name} has dtype {entry.dtype}; expected is {' or '.join(FLOATS)}")


def _require_inert(document: Any, path: Path, *, allowed: str) -> None:
    """Rejects keys that make a library run code, in a document and its first two levels."""
    level = [document]
    for _ in range(3):
        tables = [one for one in level if isinstance(one, dict)]
        for table in tables:
            if found := (RUNNING - {allowed}) & table.keys():
                raise ArtifactError(f"{path}: {min(found)} is set, which runs other code; remove it or quantize again")
        level = [one for table in tables for one in table.values()]


def _require_shards(folder: VerifiedFolder, name: str, index: Mapping[str, Any]) -> None:
    """Checks that a network's files hold exactly the tensors that their index lists."""
    path = folder.root / name
    require_schema(index, WeightIndex, path)
    held: dict[str, str] = {}
    for file in sorted(path.parent.glob("*.safetensors")):
        for tensor in TensorFile(file):
            if tensor in held:
                raise ArtifactError(f"{path.parent} holds the tensor {tensor} twice; quantize or copy it again")
            held[tensor] = file.name
    if unlike := [key for key in {**held, **index["weight_map"]} if held.get(key) != index["weight_map"].get(key)]:
        raise ArtifactError(f"{path} does not list what its files hold: {unlike[0]}; quantize or copy it again")
