"""Quantization packages of others, which `bench` measures beside artifacts: a file each."""
