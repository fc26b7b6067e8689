"""Recipes that reproduce the models bundled with bitbrush. Not part of the installed package."""
