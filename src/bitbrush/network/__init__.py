"""What the program knows of a denoiser: its layers, its blocks, and how their inputs are watched or replaced."""
