"""Options that several commands share, and their combined value."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from bitbrush.numerics.limits import MAX_COUNT

if TYPE_CHECKING:
    from bitbrush.sources.models import ModelOptions

PipelineArguments: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--pipeline-argument", help="NAME=VALUE for the pipeline's call, e.g. height=768; repeatable."),
]
Images: TypeAlias = Annotated[
    Path | None, typer.Option(help="Folder of images to start from: image-to-image and inpainting.")
]
Masks: TypeAlias = Annotated[Path | None, typer.Option(help="Folder of masks, white where to paint: inpainting.")]
Generic: TypeAlias = Annotated[
    bool, typer.Option("--generic", help="Quantize a denoiser of no known family, by what diffusers declares of it.")
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
BatchSize: TypeAlias = Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Prompts per denoiser call.")]
Device: TypeAlias = Annotated[str, typer.Option(help="Where to compute: cpu, or cuda for an NVIDIA card.")]
Overwrite: TypeAlias = Annotated[
    bool, typer.Option("--overwrite", help="Replace the artifact that stands there, once the new one is complete.")
]
ImageFile: TypeAlias = Annotated[Path | None, typer.Option(help="Image to start from, for pipelines that do.")]
MaskFile: TypeAlias = Annotated[Path | None, typer.Option(help="Mask, white where to paint, for inpainting.")]


def model_options(
    revision: str | None, variant: str | None, config: str | None, loras: Sequence[str] | None
) -> "ModelOptions":
    """Combines the four options of a model to one value."""
    from bitbrush.sources.lora import Lora
    from bitbrush.sources.models import ModelOptions

    return ModelOptions(revision, variant, config, tuple(Lora.parse(text) for text in loras or ()))


def lora_files(loras: Sequence[str] | None) -> list[str]:
    """Returns the files of ``FILE[@SCALE]`` texts."""
    return [text if Path(text).exists() else text.rpartition("@")[0] or text for text in loras or ()]


def command_line() -> str:
    """Returns this command for a report, with absolute paths reduced to their names."""
    words = (Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:])
    return shlex.join(["bitbrush", *words])
