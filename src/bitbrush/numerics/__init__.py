"""Affine quantization, integer ranges, range estimators and packing: pure functions and small frozen types."""
