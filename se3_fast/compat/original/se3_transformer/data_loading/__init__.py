"""QM9."""

from .qm9 import QM9DataModule

__all__ = ["QM9DataModule"]
