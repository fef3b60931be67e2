"""The package ``se3_transformer`` with the names and module paths of the published one, computed by ``se3_fast``."""

from .model import Fiber, SE3Transformer, SE3TransformerPooled
from .snippets import InteractionModule, LinearModule

__all__ = ["Fiber", "InteractionModule", "LinearModule", "SE3Transformer", "SE3TransformerPooled"]
