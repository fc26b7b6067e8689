"""Licence of a full-precision model, as its model card states it."""

import re
from pathlib import Path

from bitbrush.artifact.documents import ArtifactError, read_whole, require_schema
from bitbrush.artifact.folder import CARD
from bitbrush.artifact.schema import License
from bitbrush.artifact.sizes import local_model
from bitbrush.sources.models import ModelOptions

_FRONT_MATTER = re.compile(r"---\s*\n(.*?)\n---", re.DOTALL)
_ENTRY = re.compile(r"^(license|license_name|license_link):[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)


def source_license(model: str, options: ModelOptions) -> dict[str, str] | None:
    """Returns the licence that the model's card states, without network access.

    Args:
        model: Bundled name, path or hub id of the full-precision model.
        options: Loading options of that model.

    Returns:
        Entries of the card's metadata; None if there is no card here, or it states no licence.
    """
    folder = local_model(model, options)
    if folder is None or not (folder / CARD).is_file():
        return None
    try:
        front = _FRONT_MATTER.match(read_whole(folder / CARD).decode().replace("\r\n", "\n"))
        found = {key: value.strip("'\"") for key, value in _ENTRY.findall(front[1] if front else "")}
        terms: dict[str, str] = require_schema(found, License, Path(CARD))
    except (ArtifactError, UnicodeDecodeError):
        return None  # a card that states no licence, or not in this form
    return terms
