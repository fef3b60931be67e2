"""Holds the package ``se3_transformer`` under its own name."""
