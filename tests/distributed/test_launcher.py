"""The real launcher: `torchrun` starts two processes that fine-tune in phases, and both end with the same weights."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, sys
import lightning.pytorch as pl
import torch
from torch import nn
from lit_training import LitModule
from lit_training.callbacks import Diagnostics, LayerFreezing, Phase, WeightDecay

torch.set_num_threads(1)
pl.seed_everything(0, verbose=False)
net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
x = torch.randn(64, 8)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long()), 8)
watch = Diagnostics(verbose=False)
pl.Trainer(
    max_epochs=3, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, callbacks=[watch, LayerFreezing([Phase("network.3"), Phase("*", epoch=1)]), WeightDecay(1e-3)],
).fit(LitModule(net, lr=0.1, weight_decay=0.0), loader)
weights = {n: p.detach().cpu() for n, p in net.named_parameters()}
torch.save({"weights": weights, "first": x, "rules": [f.rule for f in watch.findings]}, f"{sys.argv[1]}/{os.environ['RANK']}.pt")
torch.distributed.destroy_process_group()  # else torch may abort as the interpreter ends, after all is done
"""


def test_two_processes_of_torchrun_end_with_the_same_weights(tmp_path: Path) -> None:
    import torch

    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    mine, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert mine["weights"].keys() == other["weights"].keys()
    assert all(torch.equal(value, other["weights"][name]) for name, value in mine["weights"].items())
    assert "ranks_diverged" not in mine["rules"]
    assert not torch.equal(mine["weights"]["0.weight"], torch.zeros(16, 8))
