"""What MkDocs does with this repository beyond ``docs/*.md``: generated pages, and files that lie outside of ``docs/``."""

import posixpath
import re
from pathlib import Path
from typing import Any

from generate import pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "training/emoji/README.md": "bundled-models.md",
    "LICENSE": "records/LICENSE.txt",
    "src/bitbrush/zoo/NOTICE": "records/NOTICE.txt",
    "training/emoji/NOTICE": "records/emoji-NOTICE.txt",
}
"""Files of the repository that the site has, too, with their places there; records of results come along."""
LINK = re.compile(r"(\]\()(?!\w+:|#|/)([^)\s#]+)")


def site_files() -> dict[str, str]:
    """Returns the place on the site of each file that lies outside of ``docs/``, by its path in the repository."""
    records = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    return OUTSIDE | {path.relative_to(ROOT).as_posix(): f"records/{path.name}" for path in records}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the generated pages and the files from outside of ``docs/``."""
    for uri, text in pages().items():
        files.append(File.generated(config, uri, content=text))
    for path, uri in site_files().items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    return relinked(markdown, page.file.src_uri)


def relinked(markdown: str, uri: str) -> str:
    """Returns a page's text with links that lead to the same files on the site.

    Args:
        markdown: The text, with links as they are in the repository.
        uri: The page's place on the site.
    """
    places = site_files()
    source = next((path for path, place in places.items() if place == uri), f"docs/{uri}")

    def moved(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
        place = places.get(path, path.removeprefix("docs/"))
        return link[1] + posixpath.relpath(place, posixpath.dirname(uri) or ".")

    return LINK.sub(moved, markdown)
