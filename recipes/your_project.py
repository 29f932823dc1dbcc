r"""The template to copy: your data, your network, the callbacks, and everything else from YAML or flags.

python recipes/your_project.py fit --config recipes/your_project.yaml
python recipes/your_project.py fit --config recipes/your_project.yaml --model.lr .1 --trainer.max_epochs 20
python recipes/your_project.py test --config recipes/your_project.yaml --ckpt_path best.ckpt

Two processes, started by Lightning or by torchrun:

python recipes/your_project.py fit --config recipes/your_project.yaml --trainer.strategy ddp --trainer.devices 2
torchrun --nproc-per-node 2 recipes/your_project.py fit --config recipes/your_project.yaml \
    --trainer.strategy ddp --trainer.devices 2
"""

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lit_training import LitModule


class Data(pl.LightningDataModule):
    """Your data: three loaders of `(inputs, target)`. Here: scikit-learn's digits, 8 x 8 pixels."""

    def __init__(self, batch_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        bunch = load_digits()
        everything = TensorDataset(torch.tensor(bunch.images, dtype=torch.float32)[:, None], torch.tensor(bunch.target))
        split = torch.Generator().manual_seed(self.hparams["seed"])
        self.train, self.val, self.test = random_split(everything, [1200, 197, 400], split)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.hparams["batch_size"], shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, 200)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, 200)


class Net(LitModule):
    """Your network: layers in `__init__`, `forward`. Loss, metrics, optimiser and logging come from `LitModule`."""

    def __init__(self, width: int = 32, lr: float = 0.02) -> None:
        super().__init__(lr=lr, weight_decay=0.0, normalize="fit")  # the callback decays; inputs are standardised by the data
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                                  nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Flatten())  # fmt: skip
        self.head = nn.Linear(16 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def main() -> None:
    LightningCLI(Net, Data, save_config_kwargs={"overwrite": True})


if __name__ == "__main__":
    main()
