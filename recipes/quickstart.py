"""Main job: train a small convolutional net on real digits, audited before its first weight update.

python recipes/quickstart.py                              # trains to over 97 % in seconds
python recipes/quickstart.py --depth 30 --init default    # the lecture's failure: the signal dies on the way
python recipes/quickstart.py --depth 30 --init he         # and its cure
python -m lit_training fit --config recipes/quickstart.yaml   # the same from YAML
"""

import argparse
import math
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lit_training import LitModule
from lit_training.callbacks import Diagnostics

INITS = ("default", "glorot", "he", "normal0.01")


class DigitNet(LitModule):
    """A plain stack of 3x3 convolutions: the first at 8x8 pixels, the rest at 4x4."""

    def __init__(self, depth: int = 4, width: int = 32, init: str = "he", lr: float = 0.02) -> None:
        super().__init__(lr=lr)
        self.save_hyperparameters()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width * 16, 10)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                draw(layer, init)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).flatten(1))


def draw(layer: nn.Conv2d | nn.Linear, init: str) -> None:
    """Draw the weights of a layer by the named scheme; torch's default is there already."""
    if init == "he":
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if isinstance(layer, nn.Conv2d) else "linear")
    elif init == "glorot":
        nn.init.xavier_normal_(layer.weight)
    elif init == "normal0.01":
        nn.init.normal_(layer.weight, std=0.01)
    if init != "default":
        nn.init.zeros_(layer.bias)


def digits(seed: int) -> tuple[DataLoader, DataLoader, DataLoader]:
    """scikit-learn's 1797 digits of 8x8 pixels, standardised, in 1200, 197 and 400 for training, validation and test."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None]
    data = TensorDataset((images - images.mean()) / images.std(), torch.tensor(bunch.target))
    train, val, test = random_split(data, [1200, 197, 400], torch.Generator().manual_seed(seed))
    shuffle = torch.Generator().manual_seed(seed)
    return DataLoader(train, 32, shuffle=True, generator=shuffle), DataLoader(val, 200), DataLoader(test, 200)


class Digits(pl.LightningDataModule):
    """The same data for `recipes/quickstart.yaml`."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.train, self.val, self.test = digits(seed)

    def train_dataloader(self) -> DataLoader:
        return self.train

    def val_dataloader(self) -> DataLoader:
        return self.val

    def test_dataloader(self) -> DataLoader:
        return self.test


def wandb_logger(args: argparse.Namespace) -> Logger | bool:
    """A W&B logger that is offline unless asked; without the package the run goes on unlogged."""
    if args.no_wandb:
        return False
    try:
        from lightning.pytorch.loggers import WandbLogger

        options = dict(option.split("=", 1) for option in args.wandb)
        return WandbLogger(**({"project": "lit-training", "offline": not args.online, "save_dir": args.out} | options))
    except Exception as error:
        print(f"W&B is not used ({type(error).__name__}: {error}); pip install 'lit-training[wandb]' to log there.")
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=4, help="number of layers with weights")
    parser.add_argument("--init", choices=INITS, default="he")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, help="default: .02, less for deep nets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder for checkpoints, findings and W&B")
    parser.add_argument("--online", action="store_true", help="send the W&B run to the server while training")
    parser.add_argument("--no-wandb", action="store_true")
    parser.add_argument("--wandb", action="append", default=[], metavar="OPTION=VALUE", help="any option of WandbLogger")
    args = parser.parse_args()
    if args.depth < 2:
        parser.error("--depth must be at least 2: a convolution and the head")
    args.out.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(args.seed, verbose=False)
    torch.set_num_threads(1)  # so small a net is slower on two
    lr = args.lr if args.lr is not None else 0.02 * math.sqrt(4 / max(args.depth, 4))
    net, (train, val, test) = DigitNet(args.depth, init=args.init, lr=lr), digits(args.seed)
    logger = wandb_logger(args)
    watch = Diagnostics(save_to=args.out / "findings.json")
    trainer = pl.Trainer(max_epochs=args.epochs, accelerator="auto", devices=1, logger=logger, callbacks=[watch],
                         default_root_dir=args.out, enable_checkpointing=False, log_every_n_steps=20)  # fmt: skip
    trainer.fit(net, train, val)
    accuracy = trainer.test(net, test, verbose=False)[0]["test_accuracy"]
    print(f"test accuracy {accuracy:.1%}; findings in {args.out / 'findings.json'}")
    if logger and getattr(logger, "experiment", None) is not None and getattr(logger.experiment, "dir", None):
        run = Path(str(logger.experiment.dir)).parent
        print(f"W&B run in {run}\n  look at it here:  wandb leet {run}\n  send it:          wandb sync {run}")


if __name__ == "__main__":
    main()
