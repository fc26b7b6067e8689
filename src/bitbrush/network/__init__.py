"""Denoiser architectures: layers, blocks, and hooks that observe or replace layer inputs."""
