"""Quantizing a pipeline, saving what comes of it, and loading it again."""
