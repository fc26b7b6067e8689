"""Model card of an artifact."""

import json
import shlex
from contextlib import suppress
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not in __all__

from bitbrush.artifact.sizes import denoiser_sizes
from bitbrush.methods.removed import without_removed

_TEXT = """---
{{ card_data }}
---
# {{ base_model }}, {{ method }} W{{ weights }}A{{ activations }}

The denoiser of `{{ base_model }}` quantized by bitbrush: {{ quantized }} of {{ layers }} Conv2d and Linear layers,
{{ average_bits }} activation bits on average over the denoising steps. Its weights take {{ sizes }}.

```python
import bitbrush
pipe = bitbrush.load("THIS_DIRECTORY")  # or its hub id
pipe("a large red apple on a blue background").images[0].save("apple.png")
```

After `bitbrush.register()`, diffusers' own `DiffusionPipeline.from_pretrained("THIS_DIRECTORY")` loads it, too.

Made by (`manifest.json` holds the whole recipe, the layers, the hashes and what each phase cost):

```
{{ command }}
```

{% if digest %}
`bitbrush verify THIS_DIRECTORY --sha256 DIGEST` checks every file. The digest when this card was written:

```
{{ digest }}
```
{% endif %}
"""


def model_card(manifest: dict[str, Any], digest: str | None = None) -> str:
    """Returns the text of the model card, with metadata for the Hugging Face hub.

    Args:
        manifest: Manifest of the artifact.
        digest: SHA-256 of the manifest, to print on the card.
    """
    recipe = manifest["recipe"]
    card = ModelCard.from_template(
        _metadata(manifest["base_model"]),
        template_str=_TEXT,
        base_model=manifest["base_model"],
        method=recipe["method"],
        weights=recipe["weights"],
        activations=recipe["activations"],
        layers=len(manifest["layers"]),
        quantized=sum(layer["excluded"] is None for layer in manifest["layers"]),
        sizes=denoiser_sizes(manifest).text,
        average_bits=f"{manifest['plan']['average_activation_bits']:.2f}",
        command=quantize_command(manifest),
        digest=digest,
    )
    return f"{card}\n"


def _metadata(base_model: str) -> ModelCardData:
    """Builds the card's metadata; the hub rejects a base model without hub id, so only the text names a local path."""
    hub_id = None
    with suppress(HFValidationError):
        validate_repo_id(base_model)
        hub_id = base_model
    return ModelCardData(
        base_model=hub_id,
        base_model_relation="quantized" if hub_id else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["bitbrush", "quantized"],
    )


def quantize_command(manifest: dict[str, Any]) -> str:
    """Returns the command that reproduces the artifact; two lines for a recalibrated artifact."""
    if "recalibrated_from" in manifest:
        earlier, recipe = map(without_removed, (manifest["recalibrated_from"]["recipe"], manifest["recipe"]))
        changed = {key: value for key, value in recipe.items() if value != earlier.get(key)}
        first = _command({**manifest, "recipe": earlier}).replace("-o DIR", "-o DIR0", 1)
        return f"{first}\nbitbrush recalibrate DIR0 -o DIR {' '.join(_flags(changed))}".rstrip()
    return _command(manifest)


def _command(manifest: dict[str, Any]) -> str:
    options = dict(manifest.get("base_model_options", {}))
    flags = _flags(without_removed(manifest["recipe"]))
    flags += [f"--lora {shlex.quote(lora['file'])}@{lora['scale']:g}" for lora in options.pop("loras", [])]
    flags += [f"--{name} {shlex.quote(value)}" for name, value in options.items()]
    if manifest["denoiser"]["family"] == "generic":
        flags.append("--generic")
    return f"bitbrush quantize {manifest['base_model']} -o DIR {' '.join(flags)}"


def _flags(recipe: dict[str, Any]) -> list[str]:
    special = ("exclude", "high_precision", "scheduler", "pipeline_arguments")
    flags = [f"--{key.replace('_', '-')} {value}" for key, value in recipe.items() if key not in special]
    for key in ("exclude", "high_precision"):
        flags += [f"--{key.replace('_', '-')} '{pattern}'" for pattern in recipe.get(key, ())]
    flags += [
        f"--pipeline-argument {shlex.quote(f'{name}={json.dumps(value)}')}"
        for name, value in recipe.get("pipeline_arguments", {}).items()
    ]
    if recipe.get("scheduler", "own") != "own":
        flags.append(f"--scheduler {recipe['scheduler']}")
    return flags
