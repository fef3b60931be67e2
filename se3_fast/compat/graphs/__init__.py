"""Holds the package ``dgl`` under its own name."""
