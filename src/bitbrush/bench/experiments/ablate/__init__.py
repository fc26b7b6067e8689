"""Recipes compared at equal bits (``bitbrush ablate``)."""
