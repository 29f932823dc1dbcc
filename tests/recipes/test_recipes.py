"""Each recipe with `--smoke`: it runs from the command line, and its result points the right way, by a margin."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str, folder: Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=240, check=False, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done


def recipe(name: str, folder: Path, *options: str) -> list[dict[str, str]]:
    done = run(str(ROOT / "recipes" / f"{name}.py"), "--smoke", "--no-wandb", "--out", str(folder), *options, folder=folder)
    assert "the lecture's claim" in done.stdout
    assert (folder / f"{name}.png").stat().st_size > 10_000
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_init_depth(tmp_path: Path) -> None:
    rows = {row["scheme"]: row for row in recipe("init_depth", tmp_path)}
    he, glorot, default = (rows[scheme] for scheme in ("he", "glorot", "default"))
    assert float(he["accuracy"]) > float(glorot["accuracy"]) + 0.15
    assert float(he["log10_signal_last"]) > float(glorot["log10_signal_last"]) + 3 > float(default["log10_signal_last"]) + 5
    assert [row["finding"] for row in (he, glorot, default)] == ["silent", "init_vanishing", "init_vanishing"]


def test_regularisation_2d(tmp_path: Path) -> None:
    rows = {row["arm"]: row for row in recipe("regularisation_2d", tmp_path)}
    norms = [float(rows[arm]["norm"]) for arm in ("none", "L2 .001", "L2 .01", "L2 .1")]
    assert norms[0] > 1.1 * norms[1] > 1.3 * norms[2] > 2 * norms[3]
    assert float(rows["L1 .003"]["zeros"]) > 0.4 > float(rows["L2 .01"]["zeros"]) == 0
    assert float(rows["max norm 1"]["largest_unit"]) < 1.00001 < 0.5 * float(rows["none"]["largest_unit"])
    assert {rows[arm]["finding"] for arm in ("none", "L2 .001", "L2 .01", "L1 .003", "max norm 1")} == {"silent"}


def test_alexnet(tmp_path: Path) -> None:
    rows = {row["groups"]: row for row in recipe("alexnet", tmp_path)}
    assert float(rows["2"]["outputs_apart"]) == 0
    assert float(rows["2"]["gradients_apart"]) < 1e-6
    assert rows["2"]["converted"] == "True"
    assert all(float(row["accuracy"]) > 0.4 and row["finding"] == "silent" for row in rows.values())


def test_preprocessing(tmp_path: Path) -> None:
    rows = {row["arm"]: row for row in recipe("preprocessing", tmp_path)}
    assert float(rows["standardised"]["accuracy"]) > float(rows["raw"]["accuracy"]) + 0.01
    assert [rows[arm]["finding"] for arm in ("raw", "standardised", "PCA-whitened")] == [
        "unnormalised_input",
        "silent",
        "silent",
    ]
    pytest.importorskip("torchvision")
    assert float(rows["random crops"]["ten_crops"]) > 0.6


def test_sgd_momentum(tmp_path: Path) -> None:
    rows = recipe("sgd_momentum", tmp_path)
    early = {momentum: [float(row["early_loss"]) for row in rows if row["momentum"] == momentum] for momentum in ("0.0", "0.9")}
    assert min(early["0.0"]) > max(early["0.9"]) + 0.2
    assert {float(row["apart"]) for row in rows} == {0.0}


def test_all_makes_a_gallery_and_logs_offline(tmp_path: Path) -> None:
    arguments = ("--smoke", "--seeds", "1", "--only", "sgd_momentum", "--out", str(tmp_path))
    run(str(ROOT / "recipes" / "all.py"), *arguments, folder=tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert "![sgd_momentum](figures/sgd_momentum.png)" in page
    assert "| training is three steps" in page
    assert (tmp_path / "figures" / "sgd_momentum.png").exists()
    assert list(tmp_path.glob("sgd_momentum/wandb/offline-run-*/*.wandb"))


def test_a_wandb_that_fails_costs_a_line(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import wandb\n\ndef init(**_):\n    raise OSError('no space left')\n\nwandb.init = init\n"
    )
    started = run(
        *(str(ROOT / "recipes" / "sgd_momentum.py"), "--smoke", "--seeds", "1", "--out", str(tmp_path)),
        folder=tmp_path,
        path=tmp_path,
    )
    assert "W&B is not used (OSError: no space left)" in started.stdout
    assert (tmp_path / "sgd_momentum.csv").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_your_project(tmp_path: Path, processes: int) -> None:
    project = ROOT / "recipes" / "your_project"
    flags = [
        "--trainer.logger.class_path",
        "lightning.pytorch.loggers.CSVLogger",
        "--trainer.logger.init_args.save_dir",
        str(tmp_path),
    ]
    flags += ["--trainer.max_epochs", "4", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    start: list[str] = [f"{project}.py"]
    if processes == 2:
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *start]
        flags += ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
    done = run(*start, "fit", "--config", f"{project}.yaml", *flags, folder=tmp_path)
    assert "Nothing is wrong" in done.stdout
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        reached = [float(row["val_accuracy"]) for row in csv.DictReader(file) if row.get("val_accuracy")]
    assert max(reached) > 0.9
