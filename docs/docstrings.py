"""A griffe extension: docstrings become Markdown, and a recipe key's default is its value, not its declaration."""

import re
from typing import Any

from griffe import Attribute, ExprCall, Extension, Object

ROLE = re.compile(r":[a-z]+:`~?\.?(?:[\w.]+\.)?(\w+)`")


class MarkdownDocstrings(Extension):
    """Adapts what mkdocstrings shows."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Turns roles and doubled backticks into code, and drops ``::`` before blocks."""
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value).replace("``", "`")
            obj.docstring.value = re.sub(r"^::$", "", text, flags=re.MULTILINE)

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Shows the default that ``key(default, ...)`` declares."""
        if isinstance(attr.value, ExprCall) and str(attr.value.function) == "key":
            attr.value = attr.value.arguments[0]
