"""Makes the reference pages of the documentation from the code: recipe keys, methods, commands and API.

``hooks.py`` hands the pages to MkDocs. They are not committed, so they cannot be out of date.
"""

import ast
import inspect
import pkgutil
import sys
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import typer

import bitbrush
import bitbrush.bench.metrics
from bitbrush.bench.experiments.value_table import COLUMNS, VALUES
from bitbrush.bench.schemas import results_schema
from bitbrush.cli import app
from bitbrush.methods import DEFAULT_METHOD, METHODS
from bitbrush.methods.method import Method
from bitbrush.methods.recipe import DEFAULT_ACTIVATION_BITS, KEYS, Recipe

ROOT = Path(__file__).resolve().parents[1]
GROUPS = {
    "Quantize": ("load_full_precision", "quantize", "Quantization", "recalibrate"),
    "Save and load": ("save", "load", "register", "read_manifest"),
    "Recipes": ("Recipe",),
    "Measure": ("benchmark", "ablate"),
    "Metrics": ("register_metric", "PairedMetric", "ImageMetric", "PromptMetric"),
    "Options of loading a model": ("ModelOptions", "Lora"),
}
"""Public names by heading; those that no group lists get a heading of their own."""
SHOWN = {
    "Quantization": ["pipeline", "save"],
    "Recipe": ["name", "plan", "plan_with", "updated", "to_dict"],
    "ModelOptions": [],
    "Lora": ["parse"],
}
"""Members that are shown, where that is not all of a class's own."""


def pages() -> dict[str, str]:
    """Returns the Markdown of every generated page by its path below ``docs/``."""
    return {
        "reference/recipe.md": recipe_page(),
        "reference/methods.md": methods_page(),
        "reference/commands.md": commands_page(),
        "reference/api.md": api_page(),
        "reference/metrics.md": metrics_page(),
        "reference/results.md": results_page(),
        "examples.md": examples_page(),
    }


def recipe_page() -> str:
    """Returns the table of recipe keys."""
    rows = (
        (f"`{name}`", default_of(name), declared.summary + (" ↻" if declared.recalibrates else ""))
        for name, declared in KEYS.items()
    )
    return f"""# Recipe keys

A recipe holds everything that decides what a quantization yields, apart from the model and the prompts. Options of
`bitbrush quantize`, arguments of `bitbrush.quantize` and recipe files (`--recipe FILE`, TOML or JSON) share its keys:

```toml
method = "pcr"
weights = 4
relax = "0.8:1@10"
```

An option comes before the file, and the file before the defaults of the [method](methods.md). An unknown key is an
error. The option of a key is its name with dashes: `--num-prompts`; that of `pipeline_arguments` is
`--pipeline-argument`.

The default is that of `{DEFAULT_METHOD}`, the default method, at {DEFAULT_ACTIVATION_BITS} activation bits. Other
methods' defaults stand [with them](methods.md). `bitbrush recalibrate` may change the keys that have a ↻.

{table(("key", "default", "meaning"), rows)}
"""


def default_of(name: str) -> str:
    """Returns the default of a recipe key in the default method, as Markdown."""
    if name == "method":
        return f"`{DEFAULT_METHOD}`"
    value = KEYS[name].plain(getattr(METHODS[DEFAULT_METHOD].recipe(), name))  # to_dict leaves optional keys out
    return code(list(value) if isinstance(value, tuple) else value)


def methods_page() -> str:
    """Returns a section for each method: the default keys that are its own, and its stages."""
    names = [DEFAULT_METHOD, *(name for name in METHODS if name != DEFAULT_METHOD)]
    sections = "\n".join(method_section(METHODS[name]) for name in names)
    return f"""# Methods and stages

`method` names one of these. A method is a tuple of stages and the defaults of its keys; a recipe wants some of the
stages. [Ideas behind the methods](../methods.md) has sources, equations and costs.

{sections}"""


def method_section(method: Method) -> str:
    """Returns the description of a method, its default keys and the stages that they want."""
    own, base = method.recipe().to_dict(), Recipe().to_dict()
    keys = ", ".join(f"`{name} = {plain(value)}`" for name, value in own.items() if value != base[name])
    rows = ((stage.name.replace("_", " "), stage.summary) for stage in method.stages)
    description = inspect.getdoc(sys.modules[method.defaults.__module__]) or ""
    return f"""## `{method.name}`

{markdown(description)}

Default keys: {keys or "those of every recipe"}.

{table(("stage", "what it does"), rows)}
"""


def commands_page() -> str:
    """Returns a section for each command of the command line, with all its options."""
    group = typer.main.get_command(app)
    commands: Mapping[str, Any] = group.commands  # type: ignore[attr-defined]
    sections = "\n".join(command_section(name, command) for name, command in commands.items())
    return f"""# Commands

`bitbrush COMMAND --help` prints the same. Brackets hold the default. Options that are keys of the
[recipe](recipe.md) take the defaults of the method.

{sections}"""


def command_section(name: str, command: Any) -> str:
    """Returns the description, usage and options of a command."""
    context = typer.Context(command, info_name=f"bitbrush {name}")
    records = [param.get_help_record(context) for param in command.params]
    rows = ((code(option), text) for option, text in filter(None, records))
    usage = command.get_usage(context).removeprefix("Usage: ")
    return f"""## `bitbrush {name}`

{command.help}

```text
{" ".join(usage.split())}
```

{table(("argument or option", "meaning"), rows)}
"""


def api_page() -> str:
    """Returns the reference of the public names, which mkdocstrings fills in."""
    grouped = set(chain.from_iterable(GROUPS.values()))
    elsewhere = {*grouped, "METHODS", "METRICS", "register_method"}
    others = {name: (name,) for name in bitbrush.__all__ if name not in elsewhere}
    sections = {
        heading: [entry(f"bitbrush.{name}", SHOWN.get(name)) for name in names]
        for heading, names in (GROUPS | others).items()
    }
    sections |= {
        "Methods": [
            f"`bitbrush.METHODS` holds the methods by name. `bitbrush.METHODS[{DEFAULT_METHOD!r}].recipe()` returns "
            "the recipe of its defaults.\n",
            entry("bitbrush.register_method"),
            *(entry(f"bitbrush.methods.{name}") for name in ("method.Method", "stage.Stage", "registry.Methods")),
        ]
    }
    text = "\n".join(f"## {heading}\n\n" + "\n".join(entries) for heading, entries in sections.items())
    return f"""# Python API

`import bitbrush` is quick: torch and diffusers are imported when a name that needs them is used.

{text}"""


def metrics_page() -> str:
    """Returns the reference of the metrics, which are pure functions of arrays."""
    package = bitbrush.bench.metrics
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    text = "\n".join(f"## {name.replace('_', ' ')}\n\n{entry(f'{package.__name__}.{name}')}" for name in names)
    return f"""# Metrics

Functions from two equally long sets of images or features to numbers. [QDiffBench](../benchmark.md) says which of them
a benchmark reports, and how they are read.

{text}"""


def results_page() -> str:
    """Returns the description of results files from their JSON Schema, and of the table beside them."""
    schema = results_schema()
    definitions = schema["$defs"]
    experiments = schema["properties"]["experiment"]["enum"]
    order = [*experiments, *(name for name in definitions if name not in experiments)]
    sections = "\n".join(schema_section(name, definitions[name]) for name in order)
    columns = table(("column", "meaning"), ((code(name), text) for name, text in COLUMNS.items()))
    return f"""# Results files

Every experiment writes `results.json` and `{VALUES}`, each completely or not at all; `bitbrush compare --json` prints
the same kind of document. `bitbrush.bench.schemas.results_schema()` returns the
[JSON Schema](https://json-schema.org/draft/2020-12/schema) that this page describes.

## The table

`{VALUES}` has a row per image, candidate and metric. [`read_results.py`](../examples.md) reads it with pandas.

{columns}

## The document

{schema["description"]}

{properties_table(schema)}

{sections}"""


def schema_section(name: str, definition: Mapping[str, Any]) -> str:
    """Returns the section of one definition of a JSON Schema."""
    return f"## `{name}`\n\n{definition.get('description', '')}\n\n{properties_table(definition)}\n"


def properties_table(definition: Mapping[str, Any]) -> str:
    """Returns the table of an object's properties; of another definition, its type."""
    properties = {name: value for name, value in definition.get("properties", {}).items() if value is not True}
    if not properties:
        return f"Type: {schema_type(definition)}."
    required = definition.get("required", ())
    rows = (
        (code(name) + ("" if name in required else " (optional)"), schema_type(value), value.get("description", ""))
        for name, value in properties.items()
    )
    return table(("entry", "type", "meaning"), rows)


def schema_type(definition: Mapping[str, Any]) -> str:
    """Returns the type of a definition in words, as Markdown."""
    match definition:
        case {"$ref": reference}:
            name = reference.rpartition("/")[2]
            return f"[{name}](#{name})"
        case {"anyOf": choices}:
            return " or ".join(schema_type(choice) for choice in choices)
        case {"enum": values}:
            return ", ".join(code(value) for value in values)
        case {"const": value}:
            return code(value)
        case {"type": "array", "items": items}:
            return f"list of {schema_type(items)}"
        case {"type": "object", "additionalProperties": Mapping() as values}:
            return f"table of {schema_type(values)}"
        case {"type": list() as types}:
            return " or ".join(types)
    return str(definition.get("type", "any value"))


def examples_page() -> str:
    """Returns the scripts of ``examples/``, each with what its docstring says."""
    return "# Examples\n\nThe tests run these scripts.\n\n" + "\n".join(
        example(path) for path in sorted((ROOT / "examples").glob("*.py"))
    )


def example(path: Path) -> str:
    """Returns the section of one script: its docstring as text, its code without it."""
    source = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    text = source.split('"""', 2)[2].strip()
    return f"## `{path.name}`\n\n{markdown(docstring)}\n\n```python\n{text}\n```\n"


def entry(name: str, members: list[str] | None = None) -> str:
    """Returns the mkdocstrings block of an object."""
    is_module = name.removeprefix("bitbrush.").count(".") > 1 and name.startswith("bitbrush.bench.metrics")
    options = {
        "show_root_heading": not is_module,
        "show_root_toc_entry": not is_module,
        "heading": None if is_module else name.removeprefix("bitbrush.").rpartition(".")[2],
        "members": members,
        "inherited_members": members or None,
    }
    lines = [f"      {key}: {yaml(value)}" for key, value in options.items() if value is not None]
    return "\n".join([f"::: {name}", "    options:", *lines, ""])


def yaml(value: Any) -> str:
    """Writes a flag, a text or a list of texts in YAML."""
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", '"')


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a Markdown table."""
    cells = [list(head), *(list(row) for row in rows)]
    lines = ["| " + " | ".join(escaped(cell) for cell in row) + " |" for row in cells]
    return "\n".join([lines[0], "|---" * len(cells[0]) + "|", *lines[1:]])


def escaped(cell: str) -> str:
    """Returns the text of a table cell with what Markdown would take for its own escaped; code stays as it is."""
    parts = cell.split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|").replace("\n", " ")


def code(value: Any) -> str:
    """Returns a plain value as Markdown code; nothing for an empty list or table."""
    return "" if value in ([], {}) else f"`{value}`"


def plain(value: Any) -> str:
    """Writes a plain value as TOML does."""
    return f'"{value}"' if isinstance(value, str) else str(value)


def markdown(docstring: str) -> str:
    """Turns a docstring's double backticks into Markdown's single ones."""
    return docstring.replace("``", "`")
