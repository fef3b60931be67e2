"""Whole models beside the published program and beside another checkout of ours: ``python -m bench.published``."""
