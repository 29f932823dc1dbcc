"""What `RankConsistency` costs: two gloo processes, epochs of 50 steps with and without it, side by side in one run.

python -m tests.benchmarks.ranks
"""

import itertools
import os
import statistics
import time

import lightning.pytorch as pl
import torch
import torch.multiprocessing as mp
from torch import nn

from lit_training import LitModule
from lit_training.callbacks import RankConsistency

STEPS, EPOCHS = 50, 7


class Clock(pl.Callback):
    """Seconds of each epoch, checks at its end included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_: object) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, *_: object) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def networks() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    mlp = nn.Sequential(*[part for _ in range(8) for part in (nn.Linear(512, 512), nn.ReLU())], nn.Linear(512, 10))
    widths = (3, 32, 64, 128)
    blocks = [part for a, b in itertools.pairwise(widths) for part in (nn.Conv2d(a, b, 3, 2), nn.BatchNorm2d(b), nn.ReLU())]
    conv = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return {"MLP 8 x 512": (mlp, torch.randn(64, 512)), "conv net": (conv, torch.randn(32, 3, 32, 32))}


def measure(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    for name, (net, x) in networks().items():
        data = [(x, torch.randint(10, (len(x),)))] * STEPS
        watch, clock = RankConsistency(), Clock()
        original, checks = watch._check, []

        def timed(*args: object, original=original, checks=checks) -> None:
            start = time.perf_counter()
            original(*args)
            checks.append(time.perf_counter() - start)

        watch._check = timed
        trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", devices=2, strategy="ddp", callbacks=[watch, clock],
                             logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                             use_distributed_sampler=False)  # fmt: skip
        trainer.fit(LitModule(net), torch.utils.data.DataLoader(data, batch_size=None))
        if rank == 0:
            epoch, check = statistics.median(clock.seconds), statistics.median(checks[1:])
            step = epoch / STEPS
            print(f"{name}: check {1000 * check:.2f} ms, step {1000 * step:.2f} ms: {check / step:.2f} steps an epoch")


if __name__ == "__main__":
    mp.start_processes(measure, (29517,), nprocs=2, start_method="fork")
