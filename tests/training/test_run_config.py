"""Options of a file, and those of the command line over them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("yaml")

from se3_fast.train import build_parser, main
from se3_fast.training.run_config import parse_with_config, write_config


def written(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text)
    return str(path)


def test_the_command_line_overrides(tmp_path: Path) -> None:
    path = written(tmp_path, "task: gap\nnorm: true\nlearning_rate: 1e-4\nfrom: homo\nlog_dir: some where\nmax_steps: null\n")
    found = parse_with_config(build_parser(), ["--config", path, "--task", "mu", "--epochs", "3"])
    assert (found.task, found.norm, found.learning_rate, found.epochs) == ("mu", True, 1e-4, 3)
    assert (found.starting_model, found.log_dir, found.max_steps) == ("homo", Path("some where"), None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: red", "no option 'colour'"),
        ("epochs: 0", "expected an integer above 0, got '0'"),
        ("task: [homo, gap]", "task: expected one value"),
        ("- task", "expected options by their names"),
        ("task: 'homo", "not YAML"),
        ("config: other.yaml", "no option 'config'"),
    ],
)
def test_files_of_no_use(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--config", written(tmp_path, text)])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_run_again_from_what_it_has_written(tmp_path: Path) -> None:
    parser = build_parser()
    wanted = parser.parse_args(
        ["--dataset", "sample", "--lr", "0.001", "--norm", "--target", "a: b", "c", "--log_dir", str(tmp_path)]
    )
    write_config(tmp_path / "config.yaml", parser, wanted)
    found = parse_with_config(parser, ["--config", str(tmp_path / "config.yaml")])
    assert {**vars(found), "config": None} == vars(wanted)


def test_a_run_writes_its_options(tmp_path: Path) -> None:
    sizes = "--num_layers 1 --num_degrees 1 --num_channels 4 --num_heads 1 --batch_size 512 --max_steps 1 --num_workers 0 --silent"
    assert main(["--dataset", "sample", *sizes.split(), "--log_dir", str(tmp_path)]) == 0
    found = parse_with_config(build_parser(), ["--config", str(tmp_path / "config.yaml")])
    assert (found.dataset, found.max_steps) == ("sample", 1) and found.seed is not None
