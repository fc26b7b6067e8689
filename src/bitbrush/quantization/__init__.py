"""Quantization of a pipeline from prompts and a method, with resuming and dry runs."""
