"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

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
ImageFile: TypeAlias = Annotated[Path | None, typer.Option(help="Picture to start from, for pipelines that do.")]
MaskFile: TypeAlias = Annotated[Path | None, typer.Option(help="Mask, white where to paint, for inpainting.")]
