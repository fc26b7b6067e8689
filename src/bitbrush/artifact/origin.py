"""Comparison of a full-precision model with the recorded origin of an artifact."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bitbrush.sources.model_names import portable_name
from bitbrush.sources.models import ModelOptions

OLDER = "none: made by an older bitbrush"


def require_origin(
    artifact: str | os.PathLike[str], manifest: Mapping[str, Any], model: str, options: ModelOptions, digest: str
) -> str | None:
    """Checks that a full-precision model is the origin of an artifact.

    Weights with the same LoRAs fused on another machine may differ in their last bits. Equal names and LoRA files are
    therefore accepted with a note.

    Args:
        artifact: Folder or hub id of the artifact, for messages.
        manifest: Manifest of the artifact.
        model: Hub id, bundled name or path of the full-precision model.
        options: Loading options of that model.
        digest: Digest of its weights.

    Returns:
        None for equal digests; otherwise a note on weights that pass by name and LoRA files.

    Raises:
        ValueError: The weights are others; the message names what differs.
    """
    made_of = manifest.get("base_model_digest", OLDER)
    if made_of == digest:
        return None
    recorded, given = manifest.get("base_model_options", {}), options.facts()
    differences = list(_differences(manifest["base_model"], recorded, model, given))
    if not differences and given.get("loras"):
        return (
            f"{artifact} records the same model and LoRA files, but weights with digest {made_of[:12]} instead of "
            f"{digest[:12]}: fused on another machine, or {model} was changed since"
        )
    reason = "; ".join(differences) or f"{model} was changed since"
    raise ValueError(
        f"{artifact} was made of other weights ({manifest['base_model']}, digest {made_of[:12]}) than the model given "
        f"has ({model}, {digest[:12]}): {reason}; compare an artifact with the model it was made of"
    )


def _differences(base: str, recorded: Mapping[str, Any], model: str, given: Mapping[str, Any]) -> Iterator[str]:
    if portable_name(base) != portable_name(model):
        yield f"it was made of {base}"
    for name in ("revision", "variant", "config"):
        if recorded.get(name) != given.get(name):
            yield f"{name} was {recorded.get(name) or 'not given'}, now it is {given.get(name) or 'not given'}"
    yield from _lora_differences(recorded.get("loras", ()), given.get("loras", ()))


def _lora_differences(recorded: Sequence[Mapping[str, Any]], given: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields differences between LoRAs, matched by file hash because a file may have been renamed."""
    scales = {one["sha256"]: one["scale"] for one in given}
    for one in recorded:
        if one["sha256"] not in scales:
            yield f"LoRA {_told(one)} was fused into it and is not given: add --lora FILE@{one['scale']:g}"
        elif scales[one["sha256"]] != one["scale"]:
            yield f"LoRA {_told(one)} is given with scale {scales[one['sha256']]:g}"
    fused = [one["sha256"] for one in recorded]
    for one in given:
        if one["sha256"] not in fused:
            yield f"LoRA {_told(one)} is given and was not fused into it"
    if [one["sha256"] for one in given] != fused and sorted(scales) == sorted(fused):
        yield f"the LoRAs are in another order; they were fused as {', '.join(one['file'] for one in recorded)}"


def _told(lora: Mapping[str, Any]) -> str:
    return f"{lora['file']}@{lora['scale']:g} (sha256 {lora['sha256'][:12]})"
