"""Command-line options that are keys of a recipe, generated from the declarations of the keys."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from bitbrush.methods.keys import Key
from bitbrush.methods.recipe import KEYS

RECALIBRATED = tuple(name for name, declared in KEYS.items() if declared.recalibrates)
"""Keys that ``recalibrate`` accepts."""


def takes_recipe_keys(names: Iterable[str] = tuple(KEYS)) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds an option for each key to a command; its parameter ``keys`` receives those that were set, by name."""
    wanted = {name: KEYS[name] for name in names}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            keys = {name: arguments.pop(name) for name in wanted}
            command(keys={name: value for name, value in keys.items() if value is not None}, **arguments)

        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "keys"]
        options = [_option(name, declared) for name, declared in wanted.items()]
        required = [parameter for parameter in own if parameter.default is inspect.Parameter.empty]
        others = [parameter for parameter in own if parameter.default is not inspect.Parameter.empty]
        parameters = [one.replace(kind=one.KEYWORD_ONLY) for one in (*required, *options, *others)]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
        del run.__wrapped__  # its signature differs from this one
        return run

    return decorate


def _option(name: str, declared: Key) -> inspect.Parameter:
    flags = (declared.flag,) if declared.flag else ()
    annotation = Annotated[declared.option | None, typer.Option(*flags, help=declared.summary)]  # type: ignore[name-defined]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
