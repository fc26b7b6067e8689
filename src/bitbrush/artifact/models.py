"""Deprecated alias of :mod:`bitbrush.sources.models`, for programs that import it from here."""

from bitbrush.sources.models import ModelOptions, load_full_precision

__all__ = ["ModelOptions", "load_full_precision"]
