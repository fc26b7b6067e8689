"""Deprecated alias of :mod:`bitbrush.sources.lora`, for programs that import it from here."""

from bitbrush.sources.lora import Lora

__all__ = ["Lora"]
