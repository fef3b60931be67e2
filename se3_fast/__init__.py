"""se3_fast: SE(3)-Transformers for PyTorch."""

from typing import TYPE_CHECKING, Any

from se3_fast.backends.choice import backend
from se3_fast.fiber import Fiber
from se3_fast.fuse_level import convert_fuse_level
from se3_fast.geometry import EdgeGeometry
from se3_fast.graph import Graph, complete_graph, nearest_neighbour_graph, radius_graph
from se3_fast.layers import (
    AttentionBlockSE3,
    AttentionSE3,
    ConvSE3,
    ConvSE3FuseLevel,
    GPooling,
    LinearSE3,
    NormSE3,
)
from se3_fast.model import (
    SE3Transformer,
    SE3TransformerPooled,
    build_for_state_dict,
    check_state_dict,
    fuse_level_of_state_dict,
    fuse_levels_of_state_dict,
)
from se3_fast.ops.basis import get_basis, update_basis_with_fused

if TYPE_CHECKING:
    from se3_fast.predict import Predictor

__version__ = "0.1.0"

__all__ = [
    "AttentionBlockSE3",
    "AttentionSE3",
    "ConvSE3",
    "ConvSE3FuseLevel",
    "EdgeGeometry",
    "Fiber",
    "GPooling",
    "Graph",
    "LinearSE3",
    "NormSE3",
    "Predictor",
    "SE3Transformer",
    "SE3TransformerPooled",
    "backend",
    "build_for_state_dict",
    "check_state_dict",
    "complete_graph",
    "convert_fuse_level",
    "fuse_level_of_state_dict",
    "fuse_levels_of_state_dict",
    "get_basis",
    "nearest_neighbour_graph",
    "radius_graph",
    "update_basis_with_fused",
]


def __getattr__(name: str) -> Any:
    # Only when asked for: it needs RDKit.
    if name == "Predictor":
        from se3_fast.predict import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
