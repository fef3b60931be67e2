"""The problem that each operation is measured on, one file for each; :mod:`bench.registry` has what is compared."""
