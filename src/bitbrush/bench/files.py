"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write_whole(content: str | bytes, path: Path) -> None:
    """Writes all of `content` (text as UTF-8) or nothing: nobody reads half a file, a failure leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")  # the same folder, as a rename must not cross disks
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
