"""Activation ranges over the denoising steps."""
