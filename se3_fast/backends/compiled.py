"""Operations as nodes of compiled graphs (:mod:`se3_fast.autograd.opaque`): their names, and the shapes of their results.

They are registered when the package is imported, whichever backends are there: programs that were exported elsewhere name them.
What a node runs is ``run_node`` of the implementation that put it into the graph.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from se3_fast.autograd.opaque import OpaqueOperation, Run
from se3_fast.backends import registry
from se3_fast.backends.dense.basis import pairwise_keys, shape_of


def _run_by(backend: str, operation: str) -> Run:
    def run(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
        module = registry.implementation(operation, backend)
        assert module is not None
        return module.run_node(description, operands)

    return run


def _linear_shapes(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    dtype_name, degrees, *_ = description.split(";")
    sizes = [2 * int(degree) + 1 for degree in degrees.split(",")]
    weights, example = operands[: len(sizes)], operands[len(sizes)]
    dtype = getattr(torch, dtype_name)
    return [
        example.new_empty(example.shape[0], weight.shape[0], size, dtype=dtype) for weight, size in zip(weights, sizes, strict=True)
    ]


def _radial_shapes(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    width, _, dtype_name = json.loads(description)
    invariants, parameters = operands
    sizes = (parameters.shape[0], invariants.shape[0], width)
    return [invariants.new_empty(sizes, dtype=getattr(torch, dtype_name))]


def _basis_shapes(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    max_degree, is_padded, dtype_name = json.loads(description)
    shapes = [shape_of(key, max_degree) or () for key in pairwise_keys(max_degree)]
    dtype = getattr(torch, dtype_name)
    return [operands[0].new_empty(operands[0].shape[0], *shape[:-1], shape[-1] + is_padded, dtype=dtype) for shape in shapes]


linear = OpaqueOperation("linear", _run_by("triton", "linear"), _linear_shapes)
radial = OpaqueOperation("radial", _run_by("triton", "radial"), _radial_shapes)
equivariant_norm = OpaqueOperation(
    "equivariant_norm",
    _run_by("triton", "equivariant_norm"),
    shapes=lambda description, operands: [feature.new_empty(feature.shape) for feature in operands[3:]],
)
perceptron = OpaqueOperation(
    "perceptron",
    _run_by("triton", "perceptron"),
    shapes=lambda description, operands: [
        operands[0].new_empty(operands[0].shape[0], operands[3].shape[0], dtype=getattr(torch, description))
    ],
)
pooling = OpaqueOperation(
    "pooling",
    _run_by("triton", "pooling"),
    shapes=lambda description, operands: [operands[0].new_empty(operands[1].shape[0], *operands[0].shape[1:])],
)
edge_attention = OpaqueOperation(
    "edge_attention",
    _run_by("triton", "edge_attention"),
    shapes=lambda description, operands: [operands[0].new_empty(operands[2].shape[0], *operands[0].shape[1:])],
)
pairwise_bases = OpaqueOperation("pairwise_bases", _run_by("dense", "basis"), _basis_shapes)
