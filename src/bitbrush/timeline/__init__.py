"""The denoising steps: which there are, which one runs now, and how to stop between two of them."""
