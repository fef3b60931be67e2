"""RFdiffusion's network in a contestant's process: what it computes, and what a call takes.

Its source and its sizes are those of a folder of the user's; its SE(3)-Transformers are what ``se3_transformer`` is in the process.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.published.contestant import PUBLISHED, check_origin
from se3_fast.compat import folders

SEED = 0
ANGSTROM_BETWEEN_RESIDUES = 3.8

_networks: list[tuple[nn.Module, dict[str, Any]]] = []
"""The one that was made last, with its inputs."""


def make(folder: str, is_ours: bool, length: int, path: str) -> None:
    """Make the network and the inputs of a call.

    Args:
        folder: RFdiffusion's.
        is_ours: its SE(3)-Transformers are ours, on the DGL of :mod:`se3_fast.compat`; else those that the folder brings.
        length: residues.
        path: file with the parameters; where it is not there yet it is written, with random ones.

    Raises:
        ImportError: if a package is not there, or comes from elsewhere.
    """
    own = [str(path) for path in folders(with_dgl=True)] if is_ours else [str(transformer_folder(folder))]
    sys.path[:0] = [*own, folder]
    check_origin(importlib.import_module(PUBLISHED), own[0])
    module = importlib.import_module("rfdiffusion.RoseTTAFoldModel")
    check_origin(module, folder)
    settings = importlib.import_module("yaml").safe_load(config_file(folder).read_text())
    sizes, steps = settings["preprocess"], settings["diffuser"]["T"]
    torch.manual_seed(SEED)
    network = module.RoseTTAFoldModule(**settings["model"], d_t1d=sizes["d_t1d"], d_t2d=sizes["d_t2d"], T=steps).eval()
    if Path(path).exists():
        network.load_state_dict(torch.load(path, weights_only=True))
    else:
        _fill_zeros(network)
        torch.save(network.state_dict(), path)
    _networks[:] = [(network, _inputs(length, sizes["d_t1d"], sizes["d_t2d"]))]


def transformer_folder(folder: str | Path) -> Path:
    """Where RFdiffusion keeps the published SE(3)-Transformer."""
    return Path(folder, "env", "SE3Transformer")


def config_file(folder: str | Path) -> Path:
    """Where RFdiffusion keeps the sizes of its network."""
    return Path(folder, "config", "inference", "base.yaml")


def _fill_zeros(network: nn.Module) -> None:
    """Give small random values to what an untrained network has at zero: what lies before it would not reach the outputs."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1 / parameter.shape[-1] ** 0.5)


def _inputs(length: int, features: int, pair_features: int) -> dict[str, Any]:
    """One sequence without a template's side chains, along a random walk."""
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    steps = nn.functional.normalize(normal(length, 1, 3), dim=-1)
    positions = (ANGSTROM_BETWEEN_RESIDUES * steps).cumsum(0) + normal(length, 27, 3)
    return {
        "msa_latent": normal(1, 1, length, 48),
        "msa_full": normal(1, 1, length, 25),
        "seq": nn.functional.one_hot(torch.randint(22, (1, length), generator=generator), 22).float(),
        "xyz": positions[None],
        "idx": torch.arange(length)[None],
        "t": torch.tensor(1),
        "t1d": normal(1, 1, length, features),
        "t2d": normal(1, 1, length, length, pair_features),
        "xyz_t": positions[None, None],
        "alpha_t": normal(1, 1, length, 30),
        "motif_mask": torch.zeros(length, dtype=torch.bool),
        "return_infer": True,
    }


def write_outputs(path: str, stretched: float = 1.0) -> None:
    """Write what a call returns, with its positions times a factor."""
    ((network, inputs),) = _networks
    with torch.no_grad():
        outputs = network(**inputs | {"xyz": stretched * inputs["xyz"]})
    torch.save({f"output {number}": output for number, output in enumerate(outputs)}, path)


def seconds_of_call() -> dict[str, float]:
    """The seconds of a call, ``whole`` and within its ``transformers``; with one thread those of the processor.

    Raises:
        ValueError: if it has none, or calls none.
    """
    ((network, inputs),) = _networks
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    kind = importlib.import_module(f"{PUBLISHED}.model").SE3Transformer
    started, within = [], []
    hooks = []
    for module in network.modules():
        if isinstance(module, kind):
            hooks.append(module.register_forward_pre_hook(lambda *_: started.append(clock())))
            hooks.append(module.register_forward_hook(lambda *_: within.append(clock() - started.pop())))
    with torch.no_grad():
        start = clock()
        network(**inputs)
        whole = clock() - start
    for hook in hooks:
        hook.remove()
    if not within:
        raise ValueError(f"expected a network that calls SE(3)-Transformers of {PUBLISHED}, got one that calls none")
    return {"whole": whole, "transformers": sum(within)}
