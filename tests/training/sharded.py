"""Run by test_sharded.py: a model in two processes of one machine, its gradients compared with those of the plain model.

``python -m tests.training.sharded BACKEND`` forks the processes and prints the largest relative error of each kind as JSON.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from se3_fast import AttentionBlockSE3, Fiber, SE3Transformer, backend
from tests import interpreter
from tests.support import random_features, random_graph, relative_error

FIBER = Fiber({0: 2, 1: 2})
SIZE = 2


def make_model() -> SE3Transformer:
    torch.manual_seed(0)
    fibers = {"fiber_in": FIBER, "fiber_hidden": FIBER, "fiber_out": Fiber({0: 2})}
    return SE3Transformer(1, **fibers, num_heads=1, channels_div=1).double()  # type: ignore[arg-type]


def backward(model: nn.Module, rank: int) -> None:
    graph = random_graph(4, 7, seed=rank)
    output = model(graph, random_features(FIBER, 4, seed=rank))
    torch.stack([tensor.square().sum() for tensor in output.values()]).sum().backward()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = parameter.grad
            found[name.removeprefix("module.")] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    return found


def in_processes_of_equals(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def sharded_by_block(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (SIZE,))
    for module in model.modules():
        if isinstance(module, AttentionBlockSE3):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def sharded_at_the_root(model: nn.Module) -> nn.Module:
    return fully_shard(model, mesh=init_device_mesh("cpu", (SIZE,)))


KINDS: tuple[Callable[[nn.Module], nn.Module], ...] = (in_processes_of_equals, sharded_by_block, sharded_at_the_root)


def run(rank: int, backend_name: str) -> dict[str, float]:
    """The largest relative error of each kind, in two steps one after the other."""
    dist.init_process_group("gloo", rank=rank, world_size=SIZE)
    plain = make_model()
    with backend("dense"):
        for each in range(SIZE):
            backward(plain, each)
    truth = {name: gradient / SIZE for name, gradient in gradients(plain).items()}
    errors = {}
    for kind in KINDS:
        model = kind(make_model())
        worst = 0.0
        for _ in range(2):
            model.zero_grad()
            with backend(backend_name):
                backward(model, rank)
            found = gradients(model)
            assert found.keys() == truth.keys()
            worst = max(worst, *(relative_error(found[name], truth[name]) for name in truth))
        errors[kind.__name__] = worst
    dist.destroy_process_group()
    return errors


def main() -> None:
    """Fork; rank 0 prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    if sys.argv[1] == "triton":
        interpreter.spare()
    child = os.fork()
    errors = run(1 if child == 0 else 0, sys.argv[1])
    if child == 0:
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
