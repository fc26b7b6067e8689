"""Sensitivity of images to each denoising step (``bitbrush sensitivity``)."""
