"""Rounding of float weights to integers: to nearest, or learned by block reconstruction."""
