"""What `diagnostics()` costs: epoch time in steady state beside a naive monitor, and the audit in training steps.

PYTHONPATH=. python tests/benchmarks/monitors.py
"""

import io
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import pairwise

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lit_training.callbacks import Diagnostics, InitAuditor

STEPS, EPOCHS, ROUNDS = 100, 4, 2
AUDITED, AUDITS = 8, 15  # batches of a run that is audited, which covers the second look; runs


class Net(LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 4), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(*[part for _ in range(6) for part in (nn.Linear(256, 256), nn.ReLU())], nn.Linear(256, 10))


def conv() -> nn.Module:
    widths = [3, 32, 64, 64, 128]
    parts = [p for a, b in pairwise(widths) for p in (nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(128 * 4, 10))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 6x256": (mlp, (128, 256)),
    "conv net": (conv, (32, 3, 32, 32)),
    "transformer": (Transformer, (32, 32, 64)),
}


class Naive(Callback):
    """Mean and std of every layer's output, read with `.item()` at every step."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.values: dict[str, tuple[float, float]] = {}
        for name, part in pl_module.named_modules():
            if not list(part.children()) and next(part.parameters(), None) is not None:
                part.register_forward_hook(lambda m, a, out, name=name: self._note(name, out))

    def _note(self, name: str, out: torch.Tensor) -> None:
        self.values[name] = (out.mean().item(), out.std().item())


class Clock(Callback):
    """Seconds of each step and each epoch; goes last, so that what other callbacks do counts."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.epochs: list[float] = []

    def on_train_epoch_start(self, *_: object) -> None:
        self.start = self.last = time.process_time()

    def on_train_batch_end(self, *_: object) -> None:
        now = time.process_time()
        self.steps.append(now - self.last)
        self.last = now

    def on_train_epoch_end(self, *_: object) -> None:
        self.epochs.append(time.process_time() - self.start)


def fit(kind: str, callbacks: list[Callback], steps: int = STEPS, epochs: int = EPOCHS) -> Clock:
    make, shape = NETS[kind]
    torch.manual_seed(0)
    batches = [[torch.randn(shape), torch.randint(10, shape[:1])] for _ in range(steps)]
    clock = Clock()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[*callbacks, clock], **options)
    trainer.fit(Net(make()), DataLoader(batches, batch_size=None))
    return clock


def audit(kind: str) -> str:
    """Measure what the first steps cost more, in steps: the first time in a process that has trained already, and afterwards."""
    variants: dict[str, Callable[[], list[Callback]]] = {
        "bare": list,
        "audit": lambda: [InitAuditor(verbose=False)],
        "printed": lambda: [InitAuditor()],
        "all of diagnostics": lambda: [Diagnostics(verbose=False)],
    }
    bare = fit(kind, [], AUDITED, 1)
    step, first = statistics.median(bare.steps), sum(bare.steps[1:])  # its own first step warms torch up
    with redirect_stdout(io.StringIO()):
        cold = sum(fit(kind, variants["printed"](), AUDITED, 1).steps) - first - step
        taken: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(AUDITS):
            for name, make in variants.items():
                clock = fit(kind, make(), AUDITED, 1)
                taken[name].append(sum(clock.steps))
                step = min(step, statistics.median(clock.steps)) if name == "bare" else step
    medians = {name: statistics.median(times) for name, times in taken.items()}
    costs = "  ".join(f"{name} {(medians[name] - medians['bare']) / step:.1f}" for name in list(variants)[1:])
    return f"{kind:12} step {1000 * step:.2f} ms, costs in steps: {costs}  first in the process, printed {cold / step:.1f}"


def steady(kind: str) -> str:
    """Measure epochs after the first, as ratios."""
    variants: dict[str, Callable[[], list[Callback]]] = {
        "bare": list,
        "diagnostics": lambda: [Diagnostics(verbose=False)],
        "every step": lambda: [Diagnostics(verbose=False, every_n_steps=1)],
        "naive .item()": lambda: [Naive()],
    }
    epochs: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, make in variants.items():
            epochs[name] += fit(kind, make()).epochs[1:]
    medians = {name: statistics.median(times) for name, times in epochs.items()}
    ratios = "  ".join(f"{name} {medians[name] / medians['bare']:.3f} x" for name in list(variants)[1:])
    return f"{kind:12} {ratios}"


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    kinds = sys.argv[1:] or list(NETS)
    for measure in (audit, steady):
        for kind in kinds:
            print(measure(kind), flush=True)


if __name__ == "__main__":
    main()
