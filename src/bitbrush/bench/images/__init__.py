"""Generates images, keeps them on disk, and keeps the numbers computed from them."""
