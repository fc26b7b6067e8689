"""Command ``bitbrush verify``."""

import re
from typing import Annotated

import typer

from bitbrush.cli.console import quiet_libraries, say_unbroken


def verify(
    artifact: Annotated[str, typer.Argument(metavar="DIR", help="Folder, single file or hub id of an artifact.")],
    sha256: Annotated[
        str | None,
        typer.Option(metavar="DIGEST", help="Digest to expect, as `bitbrush quantize` printed it."),
    ] = None,
) -> None:
    """Check every file and every tensor of an artifact, and print its digest."""
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ValueError(
            f"sha256 is {sha256!r}; it must be all 64 hexadecimal digits, as `bitbrush quantize` printed them"
        )
    quiet_libraries()
    from bitbrush.artifact import store
    from bitbrush.artifact.manifest import manifest_digest

    digest = manifest_digest(artifact)
    if sha256 is not None and sha256.lower() != digest:
        raise ValueError(
            f"{artifact} has digest {digest} instead of {sha256}: it is another artifact, or was "
            "altered; get it again from whoever gave you the digest"
        )
    files = store.verify(artifact)["files"]
    say_unbroken(f"verified: {artifact}, {len(files)} files\nsha256: {digest}")
