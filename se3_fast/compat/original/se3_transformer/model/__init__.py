"""Models and fibers."""

from .fiber import Fiber
from .transformer import SE3Transformer, SE3TransformerPooled

__all__ = ["Fiber", "SE3Transformer", "SE3TransformerPooled"]
