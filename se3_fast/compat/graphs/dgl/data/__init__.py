"""QM9 as bond graphs."""

from se3_fast.compat.message_passing.qm9 import QM9EdgeDataset

__all__ = ["QM9EdgeDataset"]
