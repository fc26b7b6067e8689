"""Quantization methods: each file is its default recipe and its stages."""

from bitbrush.methods.registry import DEFAULT_METHOD, METHODS, Methods, register_method

__all__ = ["DEFAULT_METHOD", "METHODS", "Methods", "register_method"]
