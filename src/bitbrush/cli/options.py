"""Options that several commands share, and their combined value."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from bitbrush.sources.models import ModelOptions

PipelineArguments: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--pipeline-argument", help="NAME=VALUE for the pipeline's call, e.g. height=768; repeatable."),
]
Images: TypeAlias = Annotated[
    Path | None, typer.Option(help="Folder of pictures to start from: image-to-image and inpainting.")
]
Masks: TypeAlias = Annotated[Path | None, typer.Option(help="Folder of masks, white where to paint: inpainting.")]
Generic: TypeAlias = Annotated[
    bool, typer.Option("--generic", help="Quantize a denoiser of unknown architecture, layer by layer.")
]
Revision: TypeAlias = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id [main].")]
Variant: TypeAlias = Annotated[str | None, typer.Option(help="Variant of the weight files, e.g. fp16.")]
Config: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Pipeline folder or hub id that tells what a single .safetensors file is [by its shapes]."),
]
Loras: TypeAlias = Annotated[
    list[str] | None, typer.Option("--lora", help="FILE[@SCALE] fused into the weights first; repeatable.")
]
Device: TypeAlias = Annotated[str, typer.Option(help="Where to compute: cpu, or cuda for an NVIDIA card.")]
Overwrite: TypeAlias = Annotated[
    bool, typer.Option("--overwrite", help="Replace the artifact that stands there, once the new one is complete.")
]
ImageFile: TypeAlias = Annotated[Path | None, typer.Option(help="Picture to start from, for pipelines that do.")]
MaskFile: TypeAlias = Annotated[Path | None, typer.Option(help="Mask, white where to paint, for inpainting.")]


def model_options(
    revision: str | None, variant: str | None, config: str | None, loras: Sequence[str] | None
) -> "ModelOptions":
    """Combines the four options of a model to one value."""
    from bitbrush.sources.lora import Lora
    from bitbrush.sources.models import ModelOptions

    return ModelOptions(revision, variant, config, tuple(Lora.parse(text) for text in loras or ()))
