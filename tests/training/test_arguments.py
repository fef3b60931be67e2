"""Options: published names and defaults, booleans, values that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from se3_fast import inference, train

PUBLISHED_DEFAULTS = {
    "epochs": 100,
    "batch_size": 240,
    "seed": None,
    "num_workers": 8,
    "amp": False,
    "gradient_clip": None,
    "accumulate_grad_batches": 1,
    "ckpt_interval": -1,
    "eval_interval": 20,
    "silent": False,
    "wandb": False,
    "benchmark": False,
    "data_dir": Path("./data"),
    "log_dir": Path("./results"),
    "dllogger_name": "dllogger_results.json",
    "save_ckpt_path": None,
    "load_ckpt_path": None,
    "optimizer": "adam",
    "learning_rate": 0.002,
    "min_learning_rate": None,
    "momentum": 0.9,
    "weight_decay": 0.1,
    "task": "homo",
    "precompute_bases": False,
    "num_layers": 7,
    "num_heads": 8,
    "channels_div": 2,
    "pooling": "max",
    "norm": False,
    "use_layer_norm": False,
    "low_memory": False,
    "num_degrees": 4,
    "num_channels": 32,
}
OWN_DEFAULTS = {
    "config": None,
    "data": None,
    "smiles": "smiles",
    "target": None,
    "unit": None,
    "classification": False,
    "split": "random",
    "split_column": None,
    "report": None,
    "log_level": "info",
    "dataset": "qm9",
    "device": "auto",
    "amp_dtype": "auto",
    "max_steps": None,
    "cuda_graphs": None,
}


def test_defaults_are_the_published_ones() -> None:
    assert vars(train.build_parser().parse_args([])) == {**PUBLISHED_DEFAULTS, **OWN_DEFAULTS, "starting_model": None}  # --from


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], False), (["--amp"], True), (["--amp", "true"], True), (["--amp", "False"], False), (["--amp", "0"], False)],
)
def test_booleans(words: list[str], expected: bool) -> None:
    assert train.build_parser().parse_args(words).amp is expected


def test_short_names() -> None:
    arguments = train.build_parser().parse_args(["--lr", "0.01", "--min_lr", "0"])
    assert (arguments.learning_rate, arguments.min_learning_rate) == (0.01, 0.0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "0"),
        ("--batch_size", "-3"),
        ("--lr", "nan"),
        ("--amp", "perhaps"),
        ("--task", "colour"),
        ("--optimizer", "newton"),
        ("--momentum", "1.0"),
        ("--seed", "-1"),
    ],
)
def test_values_that_are_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train.main([option, value])
    assert stopped.value.code == 2
    assert option.lstrip("-") in capsys.readouterr().err or option == "--lr"


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in {**PUBLISHED_DEFAULTS, **OWN_DEFAULTS})


def test_inference_needs_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        inference.main([])
    assert stopped.value.code == 2
    assert "--load_ckpt_path" in capsys.readouterr().err
