"""Benchmarks: the workloads of DESIGN section 5, backends side by side. ``python -m bench`` prints a table of ratios."""
