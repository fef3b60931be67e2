"""A trained model that training begins with, instead of a random one."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from se3_fast.data.objective import Objective
from se3_fast.model import SE3TransformerPooled
from se3_fast.pretrained import find_model

from .checkpoint import read_checkpoint
from .errors import CheckpointError
from .kinds import check_written_by
from .model_config import build_model, model_of_checkpoint


@dataclass(frozen=True)
class StartingModel:
    """A checkpoint as the beginning of another training.

    Attributes:
        path: Where it was read.
        config: Its description of the model.
        state_dict: Its parameters.
        data: Task, mean and standard deviation of its targets.
    """

    path: Path
    config: dict[str, Any]
    state_dict: dict[str, Tensor]
    data: dict[str, Any]

    @classmethod
    def read(cls, name: str) -> StartingModel:
        """Read a checkpoint, or a trained model by its name.

        Raises:
            CheckpointError: There is none, or it does not describe its model.
        """
        path = Path(name) if Path(name).exists() else find_model(name)
        checkpoint = read_checkpoint(path)
        check_written_by("se3_fast.train", checkpoint, path)
        if "model_config" not in checkpoint:
            raise CheckpointError(f"{path}: expected a checkpoint that describes its model (model_config)")
        return cls(path, checkpoint["model_config"], checkpoint["state_dict"], checkpoint.get("data", {}))

    def tell_unused(self, arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
        """Warn of options of the model that were given and are not this model's."""
        for name, own in self.config.items():
            given = getattr(arguments, name, own)
            if given not in (own, parser.get_default(name)):
                print(f"warning: --{name} {given} is not used: {self.path.stem} has {own}", file=sys.stderr)

    def config_for(self, objective: Objective) -> dict[str, Any]:
        """Description of a model with as many outputs as there are properties."""
        return {**self.config, "output_dim": len(objective.properties)}

    def model(self, objective: Objective) -> SE3TransformerPooled:
        """The model; for its own properties its last layer is changed so that it predicts the same for other means and deviations.

        In another unit it predicts the same in standard deviations. For others the last layer begins with random numbers, unless it
        is one number for one number.

        Args:
            objective: What is to be learned.

        Raises:
            CheckpointError: Description and parameters do not fit.
        """
        trained = model_of_checkpoint(self.path, self.config, self.state_dict)
        own = self._objective()
        if own is not None and own.kind == objective.kind and own.names == objective.names:
            if [one.unit for one in own.properties] != [one.unit for one in objective.properties]:
                return trained  # what it says in its standard deviations is nearer than what it says in another unit
            with torch.no_grad():
                last = _last_layer(trained)
                ratio, shift = own.stds / objective.stds, (own.means - objective.means) / objective.stds  # [P]
                last.weight.mul_(torch.from_numpy(ratio)[:, None])
                last.bias.mul_(torch.from_numpy(ratio)).add_(torch.from_numpy(shift))
            return trained
        if objective.is_one_number and (own is None or own.is_one_number):
            return trained
        model = build_model(self.config_for(objective))
        first, last = _last_layer(model), _last_layer(trained)
        last.weight, last.bias = first.weight, first.bias
        model.load_state_dict(trained.state_dict())
        return model

    def _objective(self) -> Objective | None:
        """What it has learned; None where it does not say."""
        try:
            return Objective.of_data(self.data)
        except ValueError:
            return None


def _last_layer(model: SE3TransformerPooled) -> nn.Linear:
    last = model.mlp[2]
    assert isinstance(last, nn.Linear)
    return last
