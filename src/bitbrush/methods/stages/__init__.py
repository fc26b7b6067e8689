"""Stages of methods, one file each."""
