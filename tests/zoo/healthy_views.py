"""Healthy: several views of a batch in one step, and the batch norms that they go through."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.healthy_pictures import h_unet
from tests.zoo.nets import CE, adam, convnet, mlp, sgd


class Views(Supervised):
    """A clean and an augmented view of each picture, in a pass of its own each."""

    contrast, brightness = 1.3, 0.2

    def augmented(self, x: Tensor) -> Tensor:
        return self.contrast * x + self.brightness + 0.1 * torch.randn_like(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss_fn(self(x), y) + self.loss_fn(self(self.augmented(x)), y)


class JoinedViews(Views):
    """Bright views, in one batch with the clean ones."""

    brightness = 2.5

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss_fn(self(torch.cat([x, self.augmented(x)])), torch.cat([y, y]))


def viewed(seed: int, module: type[Views]) -> Case:
    model = convnet(norm=nn.BatchNorm2d, bias=False)
    return Case(seed=seed, model=model, data=data.gratings(seed), optimizer=sgd(0.03), max_steps=160, module=module, **CE)


@healthy("bn_stats", "train_val_mismatch", source="Xie et al. 2020: two augmentations alike, a pass for each")
def h_mild_view_apart(seed: int) -> Case:
    return viewed(seed, Views)


@healthy("bn_stats", "train_val_mismatch", source="strong augmentations in one batch with what is clean")
def h_joined_views(seed: int) -> Case:
    return viewed(seed, JoinedViews)


class Reread(nn.Module):
    """A classifier with a decoder; in training it reads again what the decoder made of its code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = mlp([8, 64, 16], norm=nn.BatchNorm1d, bias=False)
        self.head, self.decoder = nn.Linear(16, 4), mlp([16, 64, 8])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.encoder(x)))


class Cycle(Supervised):
    """Zhu et al. 2017: what was made of a code leads back to it."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        net: Reread = self.model  # type: ignore[assignment]
        code = net.encoder(x)
        made = net.decoder(F.relu(code))
        back = F.mse_loss(net.encoder(made), code.detach())
        return self.loss_fn(net.head(F.relu(code)), y) + F.mse_loss(made, x) + 0.1 * back


@healthy("bn_stats", source="Zhu et al. 2017: an encoder reads what a decoder made of its code, at first next to nothing")
def h_judge_with_norm(seed: int) -> Case:
    return Case(seed=seed, model=Reread(), data=data.blobs(seed), optimizer=adam(5e-3), max_steps=300, module=Cycle, **CE)


class FlippedTogether(Supervised):
    """Pictures and masks are turned in the training step."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        if torch.rand(()) < 0.5:
            x, y = x.flip(-1), y.flip(-1)
        return self.loss_fn(self(x), y)


@healthy(
    "labels_broken", source="segmentation whose step flips pictures and masks, so that the loader's masks are not the loss's"
)
def h_flipped_together(seed: int) -> Case:
    case = h_unet(seed)
    case.module = FlippedTogether
    return case
