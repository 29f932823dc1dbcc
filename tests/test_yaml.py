"""LightningCLI: the main job from its YAML, and every callback from a name and plain values."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule

import lit_training.callbacks
from lit_training import LitModule

ROOT = Path(__file__).parents[1]
ARGUMENTS = {
    "LayerFreezing": {"phases": [{"train": "head"}, {"train": ["layer4", "head"], "epoch": 2}]},
    "MaxNorm": {"max_norm": 2.0, "exclude": ["head"]},
    "WeightDecay": {"weight_decay": 0.001, "l1": 0.0001},
    "Initialize": {"scheme": "normal", "options": {"std": 0.02}, "output_prior": [0.9, 0.1]},
    "InitAuditor": {"ignore": ["init_vanishing:features.*"], "stop_on": "error"},
    "Diagnostics": {"expect_frozen": ["body"], "select": ["init_*"]},
}
CALLBACKS = [
    name
    for name in lit_training.callbacks.__all__
    if inspect.isclass(kind := getattr(lit_training.callbacks, name)) and issubclass(kind, Callback)
]


@pytest.mark.parametrize("name", CALLBACKS)
def test_every_callback_is_built_from_yaml(name):
    kind = getattr(lit_training.callbacks, name)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=Callback)
    text = yaml.safe_dump({"callback": {"class_path": f"lit_training.callbacks.{name}", "init_args": ARGUMENTS.get(name, {})}})
    built = parser.instantiate_classes(parser.parse_string(text)).callback
    assert type(built) is kind


def test_the_main_job_runs_from_its_yaml(tmp_path):
    arguments = ["--trainer.max_epochs=1", "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"]
    arguments += [
        "--trainer.enable_progress_bar=false",
        "--trainer.callbacks.init_args.save_to",
        str(tmp_path / "findings.json"),
    ]
    command = [sys.executable, "-m", "lit_training", "fit", "--config", "recipes/quickstart.yaml", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "findings.json").exists()


def test_without_jsonargparse_the_extra_is_named(monkeypatch, capsys):
    from lit_training.__main__ import main

    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert main(["fit", "--config", "x.yaml"]) == 2
    assert "lit-training[cli]" in capsys.readouterr().err


def test_optimiser_scheduler_loss_and_network_come_from_yaml(tmp_path):
    config = {
        "model": {
            "class_path": "lit_training.LitModule",
            "init_args": {
                "network": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 32, "out_features": 2}},
                "loss": "mse",
                "lr": 0.003,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"betas": [0.8, 0.9]}},
                "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 3}},
            },
        }
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    cli = LightningCLI(LitModule, BoringDataModule, args=["--config", str(path)], run=False, subclass_mode_model=True)
    made = cli.model.configure_optimizers()
    optimizer = made["optimizer"]
    assert type(optimizer).__name__ == "AdamW"
    assert [(group["name"], group["lr"], group["betas"]) for group in optimizer.param_groups] == [
        ("decay", 0.003, (0.8, 0.9)),
        ("no_decay", 0.003, (0.8, 0.9)),
    ]
    assert made["lr_scheduler"]["scheduler"].step_size == 3
