"""Where files of the repository that lie outside of ``docs/`` are on the site, and links between the two."""

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "training/emoji/README.md": "bundled-models.md",
    "LICENSE": "records/LICENSE.txt",
    "src/bitbrush/zoo/NOTICE": "records/NOTICE.txt",
    "training/emoji/NOTICE": "records/emoji-NOTICE.txt",
}
"""Places of single files on the site; records of results come along."""
PAGES = {"examples": "examples.md"}
"""Places of pages that are made of several files."""
LINK = re.compile(r"(\]\()(?!\w+:|#|/)([^)\s#]+)")
"""The target of a relative link, without its anchor."""


def site_files() -> dict[str, str]:
    """Returns the place on the site of each file that lies outside of ``docs/``, by its path in the repository."""
    records = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    return PLACES | {path.relative_to(ROOT).as_posix(): f"records/{path.name}" for path in records}


def targets(markdown: str, source: str) -> list[str]:
    """Returns what the relative links of a file lead to, as paths in the repository."""
    folder = posixpath.dirname(source)
    return [posixpath.normpath(posixpath.join(folder, link[2])) for link in LINK.finditer(markdown)]


def relinked(markdown: str, uri: str) -> str:
    """Returns a page's text with links that lead to the same files on the site.

    Args:
        markdown: The text, with links as they are in the repository.
        uri: The page's place on the site.
    """
    places = site_files() | PAGES
    source = next((path for path, place in places.items() if place == uri), f"docs/{uri}")

    def moved(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
        place = places.get(path, path.removeprefix("docs/"))
        return link[1] + posixpath.relpath(place, posixpath.dirname(uri) or ".")

    return LINK.sub(moved, markdown)
