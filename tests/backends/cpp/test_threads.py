"""Threads that are told another number of threads than their caller: shares of the work are those of the caller."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from se3_fast.backends.cpp import library

COMPARE = """
import torch
import se3_fast
from se3_fast import EdgeGeometry, Fiber, LinearSE3, NormSE3
from tests.support import make_convolution, random_features, random_graph, relative_error

def results(backend, order):
    fiber = Fiber({0: 4, 1: 4})
    convolution = make_convolution(fiber, fiber, pool=True)
    convolution.contraction_order = order
    norm, project = NormSE3(fiber).double(), LinearSE3(fiber, fiber).double()
    graph = random_graph(60, 900)
    rel_pos = graph.edata["rel_pos"].clone().requires_grad_()
    with se3_fast.backend(backend):
        geometry = EdgeGeometry.from_relative_positions(rel_pos, 1)
        lengths = {"0": rel_pos.norm(dim=-1)[:, None, None]}
        messages = project(norm(convolution(random_features(fiber, 60), lengths, graph, geometry)))
        loss = sum(message.square().sum() for message in messages.values())
    parameters = [parameter for layer in (convolution, norm, project) for parameter in layer.parameters()]
    return [*messages.values(), *torch.autograd.grad(loss, [rel_pos, *parameters])]

for order in ("edge", "source"):
    print(max(map(relative_error, results("cpp", order), results("dense", order))))
"""


@pytest.mark.skipif(not library.is_available(), reason="needs the compiled operations")
def test_convolution_norm_and_linear_map() -> None:
    """In a process of its own, since OpenMP reads the numbers at its start: two threads, and four within a parallel region."""
    environment = os.environ | {"OMP_NUM_THREADS": "2,4"}
    child = subprocess.run(
        [sys.executable, "-c", COMPARE], capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[3], check=False
    )
    assert child.returncode == 0, child.stderr
    assert max(map(float, child.stdout.split())) < 1e-11
