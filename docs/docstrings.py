"""A griffe extension: roles of reStructuredText in docstrings become Markdown code."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":[a-z]+:`~?\.?(?:[\w.]+\.)?(\w+)`")


class MarkdownDocstrings(Extension):
    """Turns ``:func:`module.name` `` into code, doubled backticks into single ones, and drops ``::`` before blocks."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value).replace("``", "`")
            obj.docstring.value = re.sub(r"^::$", "", text, flags=re.MULTILINE)
