"""bitbrush: quantize text-to-image diffusion pipelines after training."""

__all__ = ["__version__"]

__version__ = "0.1.0"
