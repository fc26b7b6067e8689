"""Denoising steps: the sampling plan, the running timestep, and suspension of pipeline calls between steps."""
