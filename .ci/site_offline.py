"""Exit 0 if a built site fetches nothing from elsewhere: ``python .ci/site_offline.py site``."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "use": "href"}
"""Elements and attributes whose URLs a browser fetches on its own; readers follow the links of ``a``."""
ELSEWHERE = re.compile(r"(?:https?:)?//")
STYLE = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)")


class Fetches(HTMLParser):
    """Collects the addresses elsewhere that a page fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        address = given.get(LOADED.get(tag, ""), "")
        if ELSEWHERE.match(address) and given.get("rel") not in {"canonical", "license"}:
            self.found.append(address)
        self.found += STYLE.findall(given.get("style", ""))


def fetches(path: Path) -> list[str]:
    """Returns the addresses elsewhere that a page or a style sheet fetches."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        return STYLE.findall(text)
    page = Fetches()
    page.feed(text)
    return page.found + STYLE.findall(text)


if __name__ == "__main__":
    site = Path(sys.argv[1])
    files = sorted(path for path in site.rglob("*") if path.suffix in {".html", ".css", ".svg"})
    found = [f"{path}: fetches {address}" for path in files for address in fetches(path)]
    sys.exit("\n".join(found) if found or not files else 0)
