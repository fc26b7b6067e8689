"""MkDocs hooks: add generated pages, and files from outside of ``docs/``."""

from typing import Any

from generate import pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from places import ROOT, relinked, site_files


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
