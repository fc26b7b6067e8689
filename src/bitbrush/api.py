"""The functions that a program calls: quantize a pipeline, use it, save it."""

import os
from collections.abc import Mapping, Sequence
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
    """A quantized pipeline in memory: :meth:`pipeline` to use it, :meth:`save` to keep it."""

    def save(
        self,
        directory: str | os.PathLike[str],
        *,
        base_model: str | None = None,
        options: ModelOptions | None = None,
    ) -> Path:
        """Saves an artifact, a diffusers pipeline folder of packed integers, and returns its path.

        The folder appears whole or not at all; an artifact that stands there is replaced.

        Args:
            directory: Where to.
            base_model: Hub id, bundled name or path of the full-precision model, for the manifest; by default what the
                pipeline was loaded from.
            options: What else the full-precision model was loaded by: revision, variant, LoRAs.

        Raises:
            ValueError: The pipeline does not tell what it was loaded from, or the directory holds something else.
        """
        if base_model is None and self.recalibrated is None:
            base_model = _loaded_from(self.source)
        return _save(self, directory, base_model=base_model, options=options)


def quantize(
    pipe: DiffusionPipeline,
    prompts: Sequence[str] | Recipe,
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str] | Sequence[str] | None = None,
    *,
    inputs: Mapping[str, Sequence[Any]] | None = None,
    generic: bool = False,
    rounded: Mapping[str, RoundedLayer] | None = None,
    work: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
    **keys: Any,
) -> Quantization:
    """Quantizes the denoiser of a full-precision pipeline, which itself stays as it is.

    ``quantize(pipe, prompts, method="best", weights=4, activations=8)`` and, equally,
    ``quantize(pipe, prompts, "recipe.toml", weights=4)``. Keys come before the recipe, the recipe before the method's
    defaults. ``quantize(pipe, recipe, prompts)``, the order of earlier versions, works too.

    Args:
        pipe: A full-precision diffusers pipeline; its denoiser computes where it is, CPU or GPU.
        prompts: Calibration prompts, of which the first ``num_prompts`` are used.
        recipe: A :class:`Recipe`, a table of its keys, or a TOML or JSON file of them.
        inputs: What else the pipeline is given, a value per prompt under the pipeline's name for it, e.g.
            ``{"image": [...], "mask_image": [...]}``.
        generic: Whether to quantize the layers of any denoiser without regard to its architecture.
        rounded: Weights of an earlier quantization of the same pipeline with the same weight keys.
        work: A folder for finished pieces, from which the same call resumes to the same result bit for bit.
        progress: Receives reports of progress.
        **keys: Recipe keys: ``method``, ``weights``, ``activations`` and so on.

    Raises:
        ValueError: A key, value or input that does not fit; the message names it, its limit and the remedy.
    """
    former_order = isinstance(prompts, Recipe)
    chosen, texts = (prompts, recipe) if former_order else (recipe, prompts)
    done = quantization.quantize(
        pipe,
        _recipe(chosen, keys),
        cast(Sequence[str], texts),
        inputs=inputs,
        generic=generic,
        rounded=rounded,
        work=None if work is None else Path(work),
        progress=progress,
    )
    return _with_save(done)


def recalibrate(
    directory: str | os.PathLike[str], keys: Mapping[str, Any], prompts: Sequence[str], **arguments: Any
) -> Quantization:
    """Finds activation ranges anew for another plan, on the integers that an artifact holds.

    Args:
        directory: The artifact.
        keys: Recipe keys that leave the weights as they are: ``steps``, ``scheduler``, ``activations`` and so on.
        prompts: Calibration prompts.
        **arguments: ``inputs``, ``device`` and ``progress``, as for
            :func:`bitbrush.artifact.recalibration.recalibrate`.
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
