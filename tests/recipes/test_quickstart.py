"""The main job, as a user runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(tmp_path: Path, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "recipes" / "quickstart.py"), "--out", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_reaches_97_percent_and_says_where_its_run_lies(tmp_path: Path) -> None:
    printed = run(tmp_path)
    accuracy = re.search(r"test accuracy ([\d.]+)%", printed)
    assert accuracy is not None
    assert float(accuracy[1]) >= 97
    assert "wandb leet" in printed
    assert json.loads((tmp_path / "findings.json").read_text()) == []


def test_thirty_layers_of_torchs_default_are_named_before_the_first_step(tmp_path: Path) -> None:
    printed = run(tmp_path, "--depth", "30", "--init", "default", "--epochs", "1", "--no-wandb")
    assert "init_vanishing at body.0" in printed
    assert json.loads((tmp_path / "findings.json").read_text())[0]["step"] == 0


def test_thirty_layers_of_he_are_not(tmp_path: Path) -> None:
    run(tmp_path, "--depth", "30", "--init", "he", "--epochs", "1", "--no-wandb")
    assert json.loads((tmp_path / "findings.json").read_text()) == []
