"""Measures what a quantized pipeline kept of the full-precision one, and shows it."""
