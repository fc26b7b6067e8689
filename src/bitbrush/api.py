"""Public functions: quantize a pipeline, run it, save it, recalibrate a saved artifact."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from diffusers import DiffusionPipeline

from bitbrush import zoo
from bitbrush.artifact.recalibration import recalibrate as _recalibrate
from bitbrush.artifact.store import save as _save
from bitbrush.methods import DEFAULT_METHOD, METHODS
from bitbrush.methods.recipe import Recipe, read_recipe
from bitbrush.quantization import quantize as quantization
from bitbrush.rounding.nearest import RoundedLayer
from bitbrush.session.progress import Progress, silent
from bitbrush.sources.models import ModelOptions


class Quantization(quantization.Quantization):
    """Quantized pipeline in memory: :meth:`pipeline` runs it, :meth:`save` writes it to disk."""

    def save(
        self,
        directory: str | os.PathLike[str],
        *,
        base_model: str | None = None,
        options: ModelOptions | None = None,
    ) -> Path:
        """Saves an artifact: a diffusers pipeline folder with packed integer weights and a manifest.

        The folder appears complete or not at all. An artifact at the same path is replaced.

        Args:
            directory: Path of the artifact to write; one that ends in .safetensors becomes a single file.
            base_model: Hub id, bundled name or path of the full-precision model, recorded in the manifest. Defaults to
                the source that the pipeline records in its configuration.
            options: Further loading options of the full-precision model: revision, variant, LoRAs.

        Returns:
            Path of the artifact.

        Raises:
            ValueError: The pipeline does not record its source, or the directory holds something else.
        """
        if base_model is None and self.recalibrated is None:
            base_model = _loaded_from(self.source)
        return _save(self, directory, base_model=base_model, options=options)


def quantize(
    pipe: DiffusionPipeline,
    prompts: Iterable[str] | Recipe,
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str] | Sequence[str] | None = None,
    *,
    inputs: Mapping[str, Sequence[Any]] | None = None,
    generic: bool = False,
    rounded: Mapping[str, RoundedLayer] | None = None,
    work: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
    **keys: Any,
) -> Quantization:
    """Quantizes the denoiser of a full-precision pipeline and leaves that pipeline unchanged.

    ``quantize(pipe, prompts, method="best", weights=4, activations=8)`` and
    ``quantize(pipe, prompts, "recipe.toml", weights=4)`` are both valid. Keyword keys override the recipe; the recipe
    overrides the method's defaults. The argument order of earlier versions, ``quantize(pipe, recipe, prompts)``, is
    still accepted.

    Args:
        pipe: Full-precision diffusers pipeline. Its denoiser computes on its current device, CPU or GPU.
        prompts: Calibration prompts; the first ``num_prompts`` are used.
        recipe: A :class:`Recipe`, a mapping of recipe keys, or the path of a TOML or JSON file.
        inputs: Further pipeline arguments, one value per prompt under the pipeline's argument name, e.g.
            ``{"image": [...], "mask_image": [...]}``.
        generic: Whether to quantize a denoiser of no known family, by the structure that diffusers declares.
        rounded: Rounded weights of an earlier quantization of the same pipeline with the same weight keys.
        work: Folder for intermediate results. The same call resumes from it, bit for bit.
        progress: Callback that receives progress reports.
        **keys: Recipe keys: ``method``, ``weights``, ``activations`` and so on.

    Returns:
        The quantized pipeline with its recipe, layers and costs.

    Raises:
        ValueError: A key, value or input is invalid; the message names it, its limit and the remedy.
    """
    former_order = isinstance(prompts, Recipe)
    chosen, texts = (prompts, recipe) if former_order else (recipe, prompts)
    done = quantization.quantize(
        pipe,
        _recipe(chosen, keys),
        cast(Iterable[str], texts),
        inputs=inputs,
        generic=generic,
        rounded=rounded,
        work=None if work is None else Path(work),
        progress=progress,
    )
    return _with_save(done)


def recalibrate(
    directory: str | os.PathLike[str], keys: Mapping[str, Any], prompts: Iterable[str], **arguments: Any
) -> Quantization:
    """Calibrates activation ranges for another plan and reuses the integer weights of an artifact.

    Args:
        directory: Path of the artifact.
        keys: Recipe keys that leave the weights unchanged: ``steps``, ``scheduler``, ``activations`` and so on.
        prompts: Calibration prompts.
        **arguments: ``inputs``, ``device`` and ``progress``, as in
            :func:`bitbrush.artifact.recalibration.recalibrate`.

    Returns:
        The quantized pipeline with the artifact's weights and the new activation ranges.

    Raises:
        ValueError: A key changes the weights, or an argument does not fit the artifact.
    """
    return _with_save(_recalibrate(directory, keys, prompts, **arguments))


def _with_save(done: quantization.Quantization) -> Quantization:
    return Quantization(**{field.name: getattr(done, field.name) for field in fields(done)})


def _recipe(recipe: Any, keys: Mapping[str, Any]) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe.updated(keys)
    if recipe is not None and not isinstance(recipe, Mapping | str | os.PathLike):
        raise ValueError(f"recipe is a {type(recipe).__name__}; give a Recipe, a table of its keys, or a file of them")
    given = read_recipe(Path(recipe)) if isinstance(recipe, str | os.PathLike) else recipe or {}
    table: dict[str, Any] = {**given, **keys}
    return METHODS.named(table.get("method", DEFAULT_METHOD)).recipe(table)


def _loaded_from(pipe: DiffusionPipeline) -> str:
    source = str(pipe.config.get("_name_or_path") or "")
    if not source:
        raise ValueError("the pipeline does not tell what it was loaded from; give base_model, e.g. a hub id")
    bundled = {str(zoo.model_path(name)): name for name in zoo.MODELS}
    return bundled.get(source, source)
