"""What predictions are told, apart from molecules and model."""

BATCH_SIZE = 128

SUFFIXES = (".sdf", ".sd", ".mol", ".xyz", ".extxyz", ".smi", ".smiles", ".csv", ".npz")
"""Endings of the files that are read."""

WRITTEN_SUFFIXES = (".csv", ".jsonl", ".parquet", ".sdf")
"""Endings of the files that are written."""
