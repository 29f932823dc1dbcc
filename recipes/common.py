"""What the recipes share: arguments, real images, one way to train, and how a result is shown."""

import argparse
import csv
import gzip
import logging
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lit_training import LitModule, initialize_
from lit_training.callbacks import Diagnostics

matplotlib.use("Agg")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")  # Okabe and Ito's palette
FOLDERS = ("/usr/share/datasets/fashion-mnist", "data/FashionMNIST/raw")
FILES = {"train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
         "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")}  # fmt: skip


@dataclass(frozen=True)
class Images:
    """Grey pictures, `[N, 1, H, W]` with values from 0 to 255, and their classes."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def standardised(self) -> "Images":
        """Subtract the mean of the training pictures and divide by their standard deviation."""
        mean, std = self.train.mean(), self.train.std()
        return Images((self.train - mean) / std, self.train_labels, (self.test - mean) / std, self.test_labels)


@dataclass(frozen=True)
class Run:
    """One trained network: its loss at each step, its accuracy on the test pictures, what the diagnosis said first."""

    losses: np.ndarray
    accuracy: float
    finding: str
    seconds: float


@dataclass(frozen=True)
class Claim:
    """What the lecture says, what was measured, and whether it holds here."""

    text: str
    measured: str
    holds: bool


def arguments(doc: str | None, name: str, seeds: int = 5) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=seeds, help="how many, from the first on")
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="folder for the figure, the table and W&B")
    parser.add_argument("--data-dir", type=Path, help="folder with Fashion-MNIST's four .gz files")
    parser.add_argument("--smoke", action="store_true", help="seconds, on scikit-learn's digits: does it run?")
    parser.add_argument("--full", action="store_true", help="the scale of the paper, for a GPU")
    parser.add_argument("--no-wandb", action="store_true")
    return parser


def seeds_of(args: argparse.Namespace, smoke: int = 1) -> range:
    """Return the seeds of a run: all that were asked for, with `--smoke` no more than `smoke`."""
    return range(args.seed, args.seed + (min(args.seeds, smoke) if args.smoke else args.seeds))


def images(args: argparse.Namespace) -> Images:
    """Return Fashion-MNIST (60000 and 10000 pictures of 28 x 28), or with `--smoke` the digits (1400 and 397 of 8 x 8)."""
    if not args.smoke:
        return fashion_mnist(args.data_dir)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pictures = torch.tensor(bunch.images, dtype=torch.float32)[:, None] * (255 / 16)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    labels = torch.tensor(bunch.target)
    return Images(pictures[train], labels[train], pictures[test], labels[test])


def fashion_mnist(data_dir: Path | None) -> Images:
    folder = next((f for f in map(Path, [data_dir] if data_dir else FOLDERS) if (f / FILES["train"][0]).exists()), None)
    if folder is None and data_dir is None:
        try:
            from torchvision.datasets import FashionMNIST

            FashionMNIST("data", download=True)
            folder = Path(FOLDERS[1])
        except Exception as error:
            raise SystemExit(
                f"Fashion-MNIST was not found ({type(error).__name__}). Either `apt install dataset-fashion-mnist`, or `pip "
                "install torchvision` and a network; or --data-dir FOLDER with its four .gz files; or --smoke, which needs neither."
            ) from None
    if folder is None:
        raise SystemExit(
            f"--data-dir {data_dir} has no {FILES['train'][0]}; leave it out, or name the folder with the .gz files"
        )
    tensors = [_idx(folder / file) for part in ("train", "test") for file in FILES[part]]
    return Images(tensors[0][:, None].float(), tensors[1].long(), tensors[2][:, None].float(), tensors[3].long())


def _idx(path: Path) -> Tensor:
    raw = gzip.decompress(path.read_bytes())
    sizes = np.frombuffer(raw, ">i4", raw[3], offset=4)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes).copy())


def started(net: nn.Module, seed: int) -> nn.Module:
    """Give a network He's weights, drawn by a generator of their own."""
    initialize_(net, "he", generator=torch.Generator().manual_seed(seed))
    return net


def mlp(inputs: int, seed: int) -> nn.Module:
    """Return two hidden layers of 128 rectifiers."""
    layers = nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    return started(nn.Sequential(nn.Flatten(), *layers), seed)


class Batches(IterableDataset):
    """Batches of tensors in an order that only the seed decides; `augment` acts on the inputs of each."""

    def __init__(self, x: Tensor, y: Tensor, size: int, seed: int, augment: Any = None, passes: int = 1) -> None:
        self.x, self.y, self.size, self.augment, self.passes = x, y, size, augment, passes
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        orders = [torch.randperm(len(self.x), generator=self.generator) for _ in range(self.passes)]
        for rows in (rows for order in orders for rows in order.split(self.size)):
            x = self.x[rows]
            yield (x if self.augment is None else self.augment(x)), self.y[rows]


class Losses(pl.Callback):
    """Keep the loss of every step."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(outputs["loss"].detach())


def train(net: nn.Module | LitModule, data: Images, *, steps: int, seed: int, lr: float = 0.01, batch: int = 128,
          augment: Any = None, threads: int = 1, callbacks: Sequence[pl.Callback] = (), **options: Any) -> Run:  # fmt: skip
    """Train a network with SGD and momentum, watched by the diagnosis; `options` are those of `LitModule`."""
    quiet(threads)
    pl.seed_everything(seed, verbose=False)
    module = net if isinstance(net, LitModule) else LitModule(net, lr=lr, **options)
    watch, losses = Diagnostics(verbose=False), Losses()
    passes = max(1, 50 * batch // len(data.train))  # an epoch of one batch would cost more around it than in it
    loader = DataLoader(Batches(data.train, data.train_labels, batch, seed, augment, passes), batch_size=None)
    trainer = pl.Trainer(max_steps=steps, max_epochs=-1, accelerator="auto", devices=1, logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False,
                         callbacks=[watch, losses, *callbacks])  # fmt: skip
    start = time.perf_counter()
    trainer.fit(module, loader)
    seconds = time.perf_counter() - start
    alarm = next((finding.rule for finding in watch.findings if finding.severity != "note"), "silent")
    return Run(torch.stack(losses.values).cpu().numpy(), accuracy(module, data.test, data.test_labels), alarm, seconds)


@torch.no_grad()
def accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    module.eval()
    device = next(module.parameters()).device
    hits = [(module(part.to(device)).argmax(1).cpu() == label) for part, label in zip(x.split(500), y.split(500), strict=True)]
    return float(torch.cat(hits).float().mean())


def quiet(threads: int = 1) -> None:
    """Leave the console to the recipe; networks of narrow layers are slower on two threads than on one."""
    torch.set_num_threads(threads)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval (Student's t)."""
    from scipy.stats import t

    n = len(values)
    spread = float(np.std(values, ddof=1)) if n > 1 else math.nan
    return float(np.mean(values)), float(t.ppf(0.975, n - 1)) * spread / math.sqrt(n) if n > 1 else math.nan


def shown(values: Sequence[float], form: str = ".3f") -> str:
    """Write a mean and its interval."""
    mean, half = interval(values)
    return f"{mean:{form}}" + ("" if math.isnan(half) else f" ± {half:{form}}")


def band(axes: Any, runs: Sequence[np.ndarray], colour: str, label: str, smooth: int = 20, style: str = "-") -> None:
    """Draw the mean of curves and the range between the lowest and the highest, each smoothed over some steps."""
    kernel = np.ones(smooth) / smooth
    curves = np.stack([np.convolve(np.nan_to_num(run, nan=1e3), kernel, "valid") for run in runs])
    steps = np.arange(curves.shape[1]) + smooth
    axes.plot(steps, curves.mean(0), style, color=colour, label=label, linewidth=1.6)
    if len(runs) > 1:
        axes.fill_between(steps, curves.min(0), curves.max(0), color=colour, alpha=0.2, linewidth=0)


def finish(args: argparse.Namespace, name: str, figure: Any, rows: Sequence[dict[str, Any]], claims: Sequence[Claim]) -> None:
    """Write the figure and the table, print claims next to what was measured, and log all of it to W&B."""
    args.out.mkdir(parents=True, exist_ok=True)
    picture, table = args.out / f"{name}.png", args.out / f"{name}.csv"
    figure.savefig(picture, dpi=110, bbox_inches="tight")
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    with (args.out / f"{name}.claims.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["claim", "measured", "holds"])
        writer.writeheader()
        writer.writerows({"claim": c.text, "measured": c.measured, "holds": c.holds} for c in claims)
    view = Table("the lecture's claim", "measured here", "", title=name, title_justify="left")
    for claim in claims:
        view.add_row(claim.text, claim.measured, "[green]holds[/]" if claim.holds else "[red]does not hold here[/]")
    Console().print(view, f"figure: {picture}   table: {table}")
    if not args.no_wandb:
        _log(args, name, picture, rows)


def _log(args: argparse.Namespace, name: str, picture: Path, rows: Sequence[dict[str, Any]]) -> None:
    try:
        import wandb

        config = {key: str(value) for key, value in vars(args).items()}
        with wandb.init(project="lit-training", name=name, mode="offline", dir=str(args.out), config=config) as run:
            columns = list(rows[0])
            table = wandb.Table(columns=columns, data=[[row.get(key) for key in columns] for row in rows])
            run.log({"figure": wandb.Image(str(picture)), "table": table})
    except Exception as error:
        print(f"W&B is not used ({type(error).__name__}: {error})")
