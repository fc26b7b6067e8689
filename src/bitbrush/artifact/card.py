"""Model card of an artifact."""

import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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

The denoiser of {{ base_model }} quantized by bitbrush:
{{ quantized }} of {{ layers }} Conv2d and Linear layers.

| | |
|---|---|
| weight bits | {{ weight_bits }} |
| activation bits | {{ activation_bits }} |
| size of the denoiser | {{ sizes }} |
{% if speed %}| speed | {{ speed }} |
{% endif %}| licence | {{ licence }} |

## Load it

```sh
pip install bitbrush
```

```python
import bitbrush
pipe = bitbrush.load("THIS_DIRECTORY")  # or its hub id
pipe("a large red apple on a blue background").images[0].save("apple.png")
```

After `import bitbrush`, diffusers' own `DiffusionPipeline.from_pretrained("THIS_DIRECTORY")` loads the same pipeline.
Without it, diffusers reports the unknown quantization type `bitbrush`.

{% if table %}
## What it kept

{{ table }}

{% endif %}
## Made by

`manifest.json` holds the whole recipe, the layers, the hashes and what each phase cost.

{{ command }}

{% if digest %}
`bitbrush verify THIS_DIRECTORY --sha256 DIGEST` checks every file. The digest when this card was written:

```
{{ digest }}
```
{% endif %}
"""


_DENOISER_TEXT = """---
{{ card_data }}
---
# {{ kind }} of {{ base_model }}, {{ method }} W{{ weights }}A{{ activations }}

A denoiser without its pipeline, quantized by bitbrush. It takes {{ sizes }}.

```python
import bitbrush  # pip install bitbrush; without it, diffusers reports the unknown quantization type bitbrush
from diffusers import DiffusionPipeline, {{ kind }}
denoiser = {{ kind }}.from_pretrained("THIS_DIRECTORY")
pipe = DiffusionPipeline.from_pretrained("BASE_MODEL", {{ component }}=denoiser)
```
"""


@dataclass(frozen=True)
class Measured:
    """Measured figures of an artifact, as texts for its card.

    Attributes:
        speed: Time of a denoiser call and where it was measured; empty if it was not measured.
        table: Markdown of the paired figures; empty if there are none.
    """

    speed: str = ""
    table: str = ""


def model_card(manifest: dict[str, Any], digest: str | None = None, measured: Measured = Measured()) -> str:
    """Returns the text of the model card, with metadata for the Hugging Face hub.

    Args:
        manifest: Manifest of the artifact.
        digest: SHA-256 of the manifest, to print on the card.
        measured: What was measured on the artifact.
    """
    recipe = manifest["recipe"]
    card = ModelCard.from_template(
        _metadata(manifest),
        template_str=_TEXT,
        base_model=_code_span(manifest["base_model"]),
        method=recipe["method"],
        weights=recipe["weights"],
        activations=recipe["activations"],
        layers=len(manifest["layers"]),
        quantized=sum(layer["excluded"] is None for layer in manifest["layers"]),
        weight_bits=_weight_bits(manifest["layers"]),
        activation_bits=f"{manifest['plan']['average_activation_bits']:.2f} on average over the denoising steps",
        sizes=denoiser_sizes(manifest).text,
        speed=measured.speed,
        table=measured.table,
        licence=_licence(manifest),
        command=_code_block(quantize_command(manifest)),
        digest=digest,
    )
    return f"{card}\n"


def denoiser_card(manifest: Mapping[str, Any], kind: str) -> str:
    """Returns the text of the model card of a denoiser without its pipeline.

    Args:
        manifest: Manifest of the denoiser.
        kind: Name of its class.
    """
    recipe = manifest["recipe"]
    card = ModelCard.from_template(
        _metadata(manifest),
        template_str=_DENOISER_TEXT,
        kind=kind,
        component=manifest["denoiser"]["component"],
        base_model=_code_span(manifest["base_model"]),
        method=recipe["method"],
        weights=recipe["weights"],
        activations=recipe["activations"],
        sizes=denoiser_sizes(manifest).text,
    )
    return f"{card}\n"


def _weight_bits(layers: Sequence[Mapping[str, Any]]) -> str:
    """Returns how many layers have how many weight bits, e.g. ``4 (80 layers), 8 (3 layers)``."""
    counts = Counter(layer["weight_bits"] for layer in layers if layer["excluded"] is None)
    left = sum(layer["excluded"] is not None for layer in layers)
    texts = [f"{bits} ({count} layers)" for bits, count in sorted(counts.items())]
    return ", ".join([*texts, *([f"floating point ({left} layers)"] if left else [])])


def _licence(manifest: Mapping[str, Any]) -> str:
    licence = manifest.get("base_model_license")
    if licence is None:
        return f"that of {_code_span(manifest['base_model'])}, whose card names none here"
    name = _code_span(licence.get("license_name", licence["license"]))
    return f"{name}, that of the base model"


def _metadata(manifest: Mapping[str, Any]) -> ModelCardData:
    """Builds the card's metadata; the hub rejects a base model without hub id, so only the text names a local path."""
    base_model = manifest["base_model"]
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
        **manifest.get("base_model_license", {}),
    )


def _code_span(text: str) -> str:
    """Returns the text as code in a line of Markdown, whatever characters it holds."""
    line = " ".join(text.split())
    ticks = _fence(line, 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def _code_block(text: str) -> str:
    ticks = _fence(text, 3)
    return f"{ticks}\n{text}\n{ticks}"


def _fence(text: str, least: int) -> str:
    """Returns more backticks than the text has in a row, and at least ``least``."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def quantize_command(manifest: dict[str, Any]) -> str:
    """Returns the command that reproduces the artifact; two lines for a recalibrated artifact.

    All that the manifest holds is quoted for a shell.
    """
    if "recalibrated_from" in manifest:
        earlier, recipe = map(without_removed, (manifest["recalibrated_from"]["recipe"], manifest["recipe"]))
        changed = {key: value for key, value in recipe.items() if value != earlier.get(key)}
        first = _command({**manifest, "recipe": earlier}, output="DIR0")
        return f"{first}\n{shlex.join(['bitbrush', 'recalibrate', 'DIR0', '-o', 'DIR', *_flags(changed)])}"
    return _command(manifest, output="DIR")


def _command(manifest: dict[str, Any], *, output: str) -> str:
    model, options = str(manifest["base_model"]), dict(manifest.get("base_model_options", {}))
    flags = _flags(without_removed(manifest["recipe"]))
    for lora in options.pop("loras", []):
        flags += ["--lora", f"{lora['file']}@{lora['scale']:g}"]
    for name, value in options.items():
        flags += [f"--{name}", str(value)]
    if manifest["denoiser"]["family"] == "generic":
        flags.append("--generic")
    argument = f"./{model}" if model.startswith("-") else model  # otherwise it would be an option
    return shlex.join(["bitbrush", "quantize", argument, "-o", output, *flags])


def _flags(recipe: dict[str, Any]) -> list[str]:
    """Returns the options of a recipe, each name followed by its value."""
    special = ("exclude", "high_precision", "scheduler", "pipeline_arguments")
    pairs = [(key, value) for key, value in recipe.items() if key not in special]
    pairs += [(key, pattern) for key in ("exclude", "high_precision") for pattern in recipe.get(key, ())]
    pairs += [
        ("pipeline_argument", f"{name}={json.dumps(value)}")
        for name, value in recipe.get("pipeline_arguments", {}).items()
    ]
    if recipe.get("scheduler", "own") != "own":
        pairs.append(("scheduler", recipe["scheduler"]))
    return [word for key, value in pairs for word in (f"--{key.replace('_', '-')}", str(value))]
