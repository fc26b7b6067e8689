"""diffusers' ``save_pretrained`` and ``push_to_hub`` of quantized pipelines and denoisers: they write artifacts."""

import copy
import inspect
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import create_repo
from torch import nn

from bitbrush.artifact.card import denoiser_card
from bitbrush.artifact.denoiser import WEIGHTS
from bitbrush.artifact.folder import CARD, MANIFEST
from bitbrush.artifact.manifest import DENOISER_FORMAT, FORMAT, SCHEMA_VERSION
from bitbrush.artifact.network import weights_name
from bitbrush.artifact.store import placing, require_free
from bitbrush.artifact.stored import StoredDenoiser, stored_of
from bitbrush.artifact.writing import versions, write_card, write_components, write_denoiser, write_manifest
from bitbrush.methods.recipe import Recipe
from bitbrush.network.other_networks import integer_part
from bitbrush.network.own_dtype import is_autoencoder
from bitbrush.runtime.lowered import lowered_of
from bitbrush.session.disk import write_whole, writing
from bitbrush.session.outputs import claimed
from bitbrush.session.replacing import complete_folder
from bitbrush.sources.model_names import MODEL_INDEX, portable_name
from bitbrush.sources.savable import refuse_saving, require_savable

_HUB = "repo_id", "commit_message", "private", "token", "create_pr"
_ORIGIN = "base_model", "base_model_digest", "base_model_options", "base_model_license", "recalibrated_from", "plan"
"""Entries of a manifest on the origin of the weights, which a denoiser takes along where they are known."""
_ADDED = (".lora_", ".base_layer.", "_ip.", "image_projection_layers")
"""Parts of the names of tensors that adapters add to a denoiser."""


def save_pipeline(
    original: Callable[..., Any],
    pipe: DiffusionPipeline,
    save_directory: str | os.PathLike[str],
    *args: Any,
    **options: Any,
) -> Any:
    """Replaces ``DiffusionPipeline.save_pretrained``: a quantized pipeline is written as an artifact.

    Args:
        original: The method of diffusers, for everything else.
        pipe: Pipeline.
        save_directory: Folder to write, or a single file, which ends in .safetensors; an artifact there is replaced.
        *args: Further arguments of the method.
        **options: Options of the method.

    Raises:
        ValueError: The denoiser's stored form is not known, or an option does not apply; nothing is written.
    """
    quantized = {name: part for name, part in pipe.components.items() if _is_lowered(part)}
    if not quantized:
        return original(pipe, save_directory, *args, **options)
    options = _named(original, pipe, save_directory, *args, **options)
    networks = {name: _stored(part, options) for name, part in quantized.items()}
    component = _denoiser_of(networks)
    denoiser, stored = quantized[component], networks.pop(component)
    require_savable(pipe, quantized)
    target = Path(save_directory)
    with claimed(target):
        require_free(target)
        with writing(target), placing(target) as fresh:
            fresh.mkdir()
            write_components(pipe, quantized, fresh)
            write_denoiser(stored, fresh / component)
            for name, one in networks.items():
                write_denoiser(one, fresh / name, weights_name(type(quantized[name])))
            beside = {name: one.manifest["networks"][name] for name, one in networks.items()}
            manifest = _pipeline_manifest(pipe, stored, denoiser, fresh / component / WEIGHTS)
            manifest = write_manifest(fresh, manifest | ({"networks": beside} if beside else {}))
            write_card(fresh, manifest)
    return _pushed(pipe, target, options)


def save_model(
    original: Callable[..., Any], model: Any, save_directory: str | os.PathLike[str], *args: Any, **options: Any
) -> Any:
    """Replaces ``ModelMixin.save_pretrained``: a quantized denoiser is written with a manifest of its own.

    Args:
        original: The method of diffusers, for everything else.
        model: Network.
        save_directory: Folder to write; a denoiser there is replaced.
        *args: Further arguments of the method.
        **options: Options of the method.

    Raises:
        ValueError: The denoiser's stored form is not known, or an option does not apply; nothing is written.
    """
    if not _is_lowered(model):
        return original(model, save_directory, *args, **options)
    if is_autoencoder(model):
        raise ValueError("a quantized VAE is saved with its pipeline: pipe.save_pretrained(DIR)")
    options = _named(original, model, save_directory, *args, **options)
    stored = _stored(model, options)
    target = Path(save_directory)
    with claimed(target):
        _require_denoiser_folder(target)
        with writing(target), complete_folder(target) as fresh:
            write_denoiser(stored, fresh)
            manifest = write_manifest(fresh, _denoiser_manifest(stored, model, fresh / WEIGHTS))
            write_whole(denoiser_card(manifest, type(model).__name__), fresh / CARD)
    return _pushed(model, target, options)


def push(original: Callable[..., Any], owner: Any, repo_id: str, *args: Any, **options: Any) -> Any:
    """Replaces ``push_to_hub``: what is quantized is uploaded as ``save_pretrained`` writes it, its card included.

    Args:
        original: The method of diffusers, for everything else.
        owner: Pipeline or network.
        repo_id: Name of the repository.
        *args: Further arguments of the method.
        **options: Options of the method.

    Returns:
        What the upload returns.

    Raises:
        ValueError: As for ``save_pretrained``; nothing is uploaded.
    """
    parts = owner.components.values() if isinstance(owner, DiffusionPipeline) else [owner]
    if not any(map(_is_lowered, parts)):
        return original(owner, repo_id, *args, **options)
    subfolder = options.pop("subfolder", None)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "artifact")
        owner.save_pretrained(target, **{key: value for key, value in options.items() if key not in _HUB})
        return _upload(owner, target, {**options, "repo_id": repo_id}, subfolder)


def _denoiser_of(networks: Mapping[str, StoredDenoiser]) -> str:
    """Returns the name of the denoiser among quantized networks.

    Raises:
        ValueError: It is not quantized; other networks alone are no artifact.
    """
    component = next(iter(networks.values())).manifest["denoiser"]["component"]
    if component not in networks:
        raise ValueError(
            f"{', '.join(networks)} of the pipeline is quantized and its {component} is not, which no artifact holds; "
            "save the pipeline that bitbrush.load returns"
        )
    return str(component)


def _named(original: Callable[..., Any], *args: Any, **options: Any) -> dict[str, Any]:
    """Returns the options of ``save_pretrained`` by name, whether they were given by position or by name."""
    bound = inspect.signature(original).bind(*args, **options).arguments
    return {**bound, **bound.pop("kwargs", {})}


def _is_lowered(part: Any) -> bool:
    return isinstance(part, nn.Module) and lowered_of(integer_part(part)[1]) is not None


def _stored(denoiser: Any, options: dict[str, Any]) -> StoredDenoiser:
    """Returns what is to be written, after checks of the options and of the denoiser."""
    for name in ("variant", "use_flashpack", "max_shard_size"):
        if options.get(name):
            raise ValueError(f"{name} is {options[name]!r}, but an artifact has its weights once: leave it out")
    if options.get("safe_serialization") is False:
        raise ValueError("safe_serialization is False, but artifacts hold safetensors alone: leave it out")
    added = next((key for key in denoiser.state_dict() if any(part in key for part in _ADDED)), None)
    if added is not None:
        raise ValueError(
            f"{type(denoiser).__name__} has an adapter ({added}), which an artifact does not hold: unload it first, "
            "pipe.unload_lora_weights() or pipe.unload_ip_adapter()"
        )
    stored = stored_of(denoiser)
    return refuse_saving() if stored is None else stored


def _require_denoiser_folder(target: Path) -> None:
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise ValueError(f"{target} exists and holds no quantized denoiser to replace; choose another folder")


def _pipeline_manifest(pipe: DiffusionPipeline, stored: StoredDenoiser, denoiser: Any, weights: Path) -> dict[str, Any]:
    recipe = Recipe().updated(stored.manifest["recipe"])
    return {
        "base_model": _base_model(denoiser, stored),
        "plan": {
            "scheduler": type(pipe.scheduler).__name__,
            "timesteps": _timesteps(pipe.scheduler, recipe.steps),
            "average_activation_bits": float(recipe.activations),
        },
        "cost": {},
        **_common(stored, weights),
        "format": FORMAT,
        "pipeline_class": type(pipe).__name__,
    }


def _denoiser_manifest(stored: StoredDenoiser, denoiser: Any, weights: Path) -> dict[str, Any]:
    common = _common(stored, weights)
    kept = ("recipe", "denoiser", "layers", "versions", "schema_version", *_ORIGIN)
    origin = {"base_model": _base_model(denoiser, stored)}
    return {"format": DENOISER_FORMAT, **origin, **{key: common[key] for key in kept if key in common}}


def _common(stored: StoredDenoiser, weights: Path) -> dict[str, Any]:
    """Returns the entries that the stored denoiser brings along."""
    denoiser = {**stored.manifest["denoiser"], "bytes": weights.stat().st_size}
    earlier = {key: value for key, value in stored.manifest.items() if key not in ("files", "networks")}
    return {**earlier, "schema_version": SCHEMA_VERSION, "denoiser": denoiser, "versions": versions()}


def _base_model(denoiser: Any, stored: StoredDenoiser) -> str:
    """Names the model that the denoiser was loaded from, as far as diffusers records it."""
    if "base_model" in stored.manifest:
        return str(stored.manifest["base_model"])
    path = Path(str(denoiser.config.get("_name_or_path") or "unknown"))
    if path.name == stored.manifest["denoiser"]["component"] and (path.parent / MODEL_INDEX).is_file():
        path = path.parent
    if path.parent.name == "snapshots":  # of the hub's cache: models--OWNER--NAME/snapshots/COMMIT
        return path.parents[1].name.removeprefix("models--").replace("--", "/", 1)
    return portable_name(path)


def _timesteps(scheduler: Any, steps: int) -> list[float]:
    trial = copy.deepcopy(scheduler)
    trial.set_timesteps(steps, **({"mu": 1.0} if trial.config.get("use_dynamic_shifting") else {}))
    return [float(timestep) for timestep in trial.timesteps]


def _pushed(owner: Any, target: Path, options: Mapping[str, Any]) -> Any:
    """Uploads what was written, if ``save_pretrained(push_to_hub=True)`` asks for it."""
    if options.get("push_to_hub"):
        _upload(owner, target, {"repo_id": target.name, **options})


def _upload(owner: Any, target: Path, options: Mapping[str, Any], subfolder: str | None = None) -> Any:
    token = options.get("token")
    name = create_repo(options["repo_id"], exist_ok=True, private=options.get("private"), token=token).repo_id
    return owner._upload_folder(
        target,
        name,
        token=token,
        commit_message=options.get("commit_message"),
        create_pr=bool(options.get("create_pr")),
        **({} if subfolder is None else {"subfolder": subfolder}),
    )
