"""Calibration of activation ranges over the denoising steps."""
