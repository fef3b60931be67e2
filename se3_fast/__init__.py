"""se3_fast: SE(3)-Transformers for PyTorch."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from se3_fast.lazy import lazy_names

if TYPE_CHECKING:
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

_HOMES = {
    "AttentionBlockSE3": "se3_fast.layers",
    "AttentionSE3": "se3_fast.layers",
    "ConvSE3": "se3_fast.layers",
    "ConvSE3FuseLevel": "se3_fast.layers",
    "EdgeGeometry": "se3_fast.geometry",
    "Fiber": "se3_fast.fiber",
    "GPooling": "se3_fast.layers",
    "Graph": "se3_fast.graph",
    "LinearSE3": "se3_fast.layers",
    "NormSE3": "se3_fast.layers",
    "Predictor": "se3_fast.predict",
    "SE3Transformer": "se3_fast.model",
    "SE3TransformerPooled": "se3_fast.model",
    "backend": "se3_fast.backends.choice",
    "build_for_state_dict": "se3_fast.model",
    "check_state_dict": "se3_fast.model",
    "complete_graph": "se3_fast.graph",
    "convert_fuse_level": "se3_fast.fuse_level",
    "fuse_level_of_state_dict": "se3_fast.model",
    "fuse_levels_of_state_dict": "se3_fast.model",
    "get_basis": "se3_fast.ops.basis",
    "nearest_neighbour_graph": "se3_fast.graph",
    "radius_graph": "se3_fast.graph",
    "update_basis_with_fused": "se3_fast.ops.basis",
}
"""Where the names come from."""

_BODY = "se3_fast.fuse_level"
"""Imports all that this module's names come from, but what needs RDKit; and registers the operators that exported programs name."""

__getattr__, __dir__ = lazy_names(__name__, _HOMES, _BODY)


def _is_command() -> bool:
    """Whether the process was started as ``se3-fast`` or ``python -m se3_fast...``."""
    words = sys.orig_argv
    module = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    return [word.split(".")[0] for word in module] == [__name__] or any(Path(word).stem == "se3-fast" for word in words[:2])


if not _is_command():  # whose help need not wait for PyTorch
    import_module(_BODY)
