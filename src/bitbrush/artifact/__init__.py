"""Artifacts: saving and loading quantized pipelines."""
