"""diffusers' ``from_pretrained`` of artifacts: the verified, fast loading of :func:`bitbrush.load`, by its options."""

import json
import os
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from diffusers import PipelineQuantizationConfig
from torch import nn

from bitbrush.artifact.denoiser import CONFIG
from bitbrush.artifact.documents import ArtifactError
from bitbrush.artifact.hub import OPTIONS, fetch_artifact, fetch_denoiser
from bitbrush.artifact.loading import Surroundings, load_stored, load_with
from bitbrush.artifact.manifest import is_artifact, read_manifest, reading_tensors
from bitbrush.artifact.quantization_config import METHOD, BitbrushConfig
from bitbrush.artifact.quantizer import AlreadyQuantized, require_one_device
from bitbrush.artifact.single_file import is_single_file
from bitbrush.artifact.verification import reading_denoiser
from bitbrush.runtime.choose import Choice, dtype_name, runtime_named
from bitbrush.timeline.defaults import plain_defaults

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_FILE = "pretrained_model_link_or_path"
_ONE_COPY = "an artifact has its weights once: leave it out; torch_dtype sets the type that other networks compute in"
_NO_CODE = "an artifact runs no code of others: load it, and build YourPipeline(**pipe.components)"
REMEDIES = {
    "variant": _ONE_COPY,
    "custom_pipeline": _NO_CODE,
    "custom_revision": _NO_CODE,
    "trust_remote_code": _NO_CODE,
    "load_connected_pipeline": "load the other pipeline by itself",
    "max_memory": "a quantized denoiser is on one device: leave it out",
    "offload_folder": "the weights fit in memory packed: leave it out",
    "offload_state_dict": "the weights fit in memory packed: leave it out",
    "parallel_config": "a quantized denoiser is on one device: leave it out",
    "use_flashpack": "an artifact is in safetensors: leave it out",
    "use_onnx": "an artifact is in safetensors: leave it out",
    "config": "an artifact has its configurations: leave it out",
    "original_config": "an artifact has its configurations: leave it out",
}
"""Options of ``from_pretrained`` that an artifact refuses, and what to do instead."""
STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that name no device."""
_IGNORED = (*OPTIONS, "disable_mmap", "low_cpu_mem_usage", "use_safetensors", "mirror", "output_loading_info")
"""Options without an effect on how an artifact loads."""


def load_pipeline_as(
    original: Callable[..., Any], kind: Any, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any
) -> Any:
    """Replaces ``DiffusionPipeline.from_pretrained``: artifacts load as by :func:`bitbrush.load`.

    Args:
        original: The method of diffusers, for everything else.
        kind: Class whose method is called.
        pretrained_model_name_or_path: Folder, single file or hub id.
        **options: Options of the method.

    Returns:
        The pipeline.

    Raises:
        ArtifactError: The artifact is not intact.
        ValueError: An option does not apply to artifacts; the message has the remedy.
    """
    source = pretrained_model_name_or_path
    root = _artifact_at(source, options)
    if root is None:
        return original(kind, source, **options)
    component = read_manifest(root)["denoiser"]["component"]
    config = _execution_of(options.pop("quantization_config", None), component)
    denoiser_dtype, dtype = _types(_pop_dtype(options), component)
    choice = _choice(config, denoiser_dtype, options)
    pipe = load_with(root, choice, Surroundings(kind, dtype, options))
    pipe.set_progress_bar_config()  # shown, as diffusers does
    pipe.register_to_config(_name_or_path=os.fspath(source))
    return pipe


def load_file_as(original: Callable[..., Any], kind: Any, *args: Any, **options: Any) -> Any:
    """Replaces ``from_single_file`` of pipelines: an artifact in one file loads as by ``from_pretrained``.

    Args:
        original: The method of diffusers, for everything else.
        kind: Class whose method is called.
        *args: The file.
        **options: Options of the method.

    Returns:
        The pipeline.

    Raises:
        ArtifactError: The artifact is not intact.
        ValueError: An option does not apply to artifacts; the message has the remedy.
    """
    file = args[0] if args else options.get(_FILE)
    if not _is_packed(file):
        return original(kind, *args, **options)
    options.pop(_FILE, None)
    return kind.from_pretrained(file, **options)


def refuse_file(original: Callable[..., Any], kind: Any, *args: Any, **options: Any) -> Any:
    """Replaces ``from_single_file`` of networks, which would look for original names in an artifact's file.

    Raises:
        ValueError: The file is an artifact.
    """
    file = args[0] if args else options.get(f"{_FILE}_or_dict")
    if _is_packed(file):
        raise ValueError(
            f"{file} is an artifact, of a whole pipeline: bitbrush.load({str(file)!r}) loads it, its "
            f"{kind.__name__} included"
        )
    return original(kind, *args, **options)


def _is_packed(file: Any) -> bool:
    return isinstance(file, str | os.PathLike) and is_single_file(file) and is_artifact(file)


def _artifact_at(source: Any, options: Mapping[str, Any]) -> Path | None:
    """Returns the folder or file of an artifact, fetched from the hub where necessary; None for everything else."""
    if not isinstance(source, str | os.PathLike):
        return None
    if Path(source).exists():
        return Path(source) if is_artifact(source) else None
    return fetch_artifact(os.fspath(source), options)


def load_model_as(
    original: Callable[..., Any], kind: Any, pretrained_model_name_or_path: Any = None, **options: Any
) -> Any:
    """Replaces ``ModelMixin.from_pretrained``: the denoiser of an artifact runs as by :func:`bitbrush.load`.

    Args:
        original: The method of diffusers, for everything else.
        kind: Class whose method is called.
        pretrained_model_name_or_path: Folder or hub id.
        **options: Options of the method.

    Returns:
        The network, or what the options make the method return.

    Raises:
        ArtifactError: The denoiser's files are not intact.
        ValueError: An option does not apply to artifacts; the message has the remedy.
    """
    source = pretrained_model_name_or_path
    if not _is_quantized(kind, source, options):
        try:
            return original(kind, source, **options)
        except AlreadyQuantized:
            pass
    subfolder = options.pop("subfolder", None) or ""
    reports = options.get("output_loading_info")
    local = Path(source, subfolder)
    folder = local if local.is_dir() else fetch_denoiser(os.fspath(source), subfolder, options)
    config = _execution_of(options.pop("quantization_config", None), "")
    choice = _choice(config, _types(_pop_dtype(options), "")[0], options)
    denoiser = _read_denoiser(folder, choice, kind)
    denoiser.register_to_config(_name_or_path=os.fspath(source))
    return (denoiser, {"missing_keys": [], "unexpected_keys": [], "error_msgs": []}) if reports else denoiser


def _read_denoiser(folder: Path, choice: Choice, kind: type) -> Any:
    with plain_defaults(), reading_denoiser(folder) as manifest, reading_tensors(folder):
        denoiser: nn.Module = load_stored(folder, manifest, choice)
    if not isinstance(denoiser, kind):
        raise ArtifactError(f"{folder} holds a {type(denoiser).__name__}, no {kind.__name__}; load it with its class")
    return denoiser


def _is_quantized(kind: Any, source: Any, options: Mapping[str, Any]) -> bool:
    """Tells whether a network is an artifact's, where that is known without asking the hub in vain."""
    if not isinstance(source, str | os.PathLike):
        return False
    path = Path(source, options.get("subfolder") or "", CONFIG)
    config: Any = None
    if path.is_file():
        with suppress(ValueError, RecursionError):  # which diffusers reports in its own words
            config = json.loads(path.read_text(encoding="utf-8"))
    elif isinstance(options.get("quantization_config"), BitbrushConfig):  # diffusers would warn that it is ignored
        known = {key: value for key, value in options.items() if key in (*OPTIONS, "subfolder")}
        config = kind.load_config(source, **known)
    entry = config.get("quantization_config") if isinstance(config, dict) else None
    return isinstance(entry, dict) and entry.get("quant_method") == METHOD


def _execution_of(config: Any, component: str) -> BitbrushConfig:
    """Returns the runtime and memory mode of a configuration for an artifact, whose bits are settled."""
    plain = BitbrushConfig()
    if isinstance(config, PipelineQuantizationConfig) and set(config.quant_mapping or ()) == {component}:
        config = config.quant_mapping[component]
    if config is None:
        return plain
    if not isinstance(config, BitbrushConfig) or config.recipe_keys != plain.recipe_keys:
        raise ValueError(
            "quantization_config is given, and the artifact is quantized: of a BitbrushConfig only runtime and memory "
            "apply; leave the other keys out, or quantize the full-precision model again"
        )
    return config


def _pop_dtype(options: MutableMapping[str, Any]) -> Any:
    """Removes the type from the options, whose name depends on the version of diffusers."""
    given = [options.pop(name, None) for name in ("dtype", "torch_dtype")]
    return next((dtype for dtype in given if dtype is not None), None)


def _types(given: Any, component: str) -> tuple[torch.dtype | None, Any]:
    """Returns the type for the denoiser and those for the other networks; None for bitbrush's own choice."""
    if isinstance(given, Mapping):
        types = {name: _type(dtype) for name, dtype in given.items()}
        default = types.pop("default", None)
        others = {name: dtype or torch.float32 for name, dtype in types.items()}
        return types.get(component, default), {**others, "default": default or torch.float32}
    dtype = _type(given)
    return dtype, None if dtype == torch.float32 else dtype


def _type(given: Any) -> torch.dtype | None:
    if given is None or given == "auto":
        return None
    if dtype_name(given) not in TYPES:
        raise ValueError(f"torch_dtype is {given}; choose from {', '.join(TYPES)}, or 'auto' for the fastest")
    return TYPES[dtype_name(given)]


def _choice(config: BitbrushConfig, dtype: torch.dtype | None, options: MutableMapping[str, Any]) -> Choice:
    """Selects the runtime, and removes the options that are not arguments of the pipeline.

    float16 means the fastest type: runtimes compute in float32 or bfloat16 between the products of integers, and a
    denoiser takes and returns any type.
    """
    device = _device(options.pop("device_map", None))
    for name, key in (("low_cpu_mem_usage", "weights are read layer by layer"), ("use_safetensors", _ONE_COPY)):
        if options.get(name) is False:
            raise ValueError(f"{name} is False, but {key}: leave it out")
    for name, remedy in REMEDIES.items():
        if options.pop(name, None):
            raise ValueError(f"{name} is no option of an artifact: {remedy}")
    for name in _IGNORED:
        options.pop(name, None)
    return runtime_named(config.runtime, None if dtype == torch.float16 else dtype, config.memory, device)


def _device(device_map: Any) -> torch.device | None:
    """Returns the device that a map names; None for the strategies, which leave it to the runtime.

    Raises:
        ValueError: The map is over several devices.
    """
    require_one_device(device_map)
    place = next(iter(device_map.values()), None) if isinstance(device_map, dict) else device_map
    return None if place is None or (isinstance(place, str) and place in STRATEGIES) else torch.device(place)
