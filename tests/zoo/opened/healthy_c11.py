"""Held-out healthy cases: everyday set-ups with schedules and accumulated batches."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR, ReduceLROnPlateau

from tests.zoo.case import Case, healthy
from tests.zoo.data import digits, gratings, rng, split, standardise, waves
from tests.zoo.more_data import centred, pulses, shapes, swings
from tests.zoo.nets import CE, MSE, ResNet, adam, adamw, conv1d_net, convnet, mlp, sgd
from tests.zoo.opened.healthy_c2 import scenes, trunk


@healthy(source="fast.ai: a small residual network under one cycle")
def h_one_cycle_resnet_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=ResNet(channels=3, width=12), data=centred(shapes(seed, 1200)), optimizer=sgd(0.05, weight_decay=5e-4),
        scheduler=lambda o: {"scheduler": OneCycleLR(o, 0.1, total_steps=220), "interval": "step"}, max_steps=220, **CE,
    )  # fmt: skip


@healthy(source="PyTorch's tutorials: the rate falls when the validation loss stands still")
def h_rate_on_plateau_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=conv1d_net(width=16), data=waves(seed, 1500), optimizer=adam(4e-3), max_steps=250,
        scheduler=lambda o: {"scheduler": ReduceLROnPlateau(o, factor=0.5, patience=2), "monitor": "val_loss"}, **CE,
    )  # fmt: skip


@healthy(source="torchvision's references: SGD, weight decay, the rate cut to a tenth at milestones")
def h_milestones_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=convnet(width=12, norm=nn.BatchNorm2d, bias=False), data=gratings(seed, 1200),
        optimizer=sgd(0.05, weight_decay=1e-4), scheduler=lambda o: MultiStepLR(o, [5, 8]), max_steps=240, **CE,
    )  # fmt: skip


@healthy("batch_mixing", source="little memory: batches of eight, four of them to a step, group norm")
def h_four_small_batches_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=convnet(size=8, classes=10, width=12, norm=lambda n: nn.GroupNorm(4, n)),
        data=digits(seed, flat=False), optimizer=adamw(3e-3), batch_size=8, max_steps=200,
        trainer={"accumulate_grad_batches": 4}, **CE,
    )  # fmt: skip


class Conditioned(nn.Module):
    """A variational autoencoder that is told which digit it sees."""

    def __init__(self, code: int = 8) -> None:
        super().__init__()
        self.encode, self.decode = mlp([74, 96, 2 * code], act=nn.SiLU), mlp([code + 10, 96, 64], act=nn.SiLU)

    def forward(self, x: Tensor, kind: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encode(torch.cat([x, kind], 1)).chunk(2, 1)
        z = mean + (log_var / 2).exp() * torch.randn_like(mean) if self.training else mean
        return self.decode(torch.cat([z, kind], 1)), mean, log_var


@healthy(source="Sohn 2015: conditional VAE of digits, as in many tutorials")
def h_told_which_digit_uc(seed: int) -> Case:
    def loss(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        guess, mean, log_var = output
        extra = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1).mean()
        return (F.mse_loss(guess, target, reduction="sum") / len(target) + extra) / 64

    x, y = (torch.cat([part.tensors[i] for part in digits(seed)]) for i in (0, 1))
    return Case(
        seed=seed, model=Conditioned(), data=split(x, F.one_hot(y, 10).float(), x), loss=loss, metric="mean_r2",
        optimizer=adam(2e-3), max_steps=300,
    )  # fmt: skip


@healthy("missing_activation", source="anomaly detection: a 1-D convolutional autoencoder of windows of a signal")
def h_window_autoencoder_uc(seed: int) -> Case:
    x = torch.cat([part.tensors[0] for part in swings(seed)])[:, None]
    model = nn.Sequential(
        nn.Conv1d(1, 12, 4, 2, 1), nn.ELU(), nn.Conv1d(12, 16, 4, 2, 1), nn.ELU(), nn.Flatten(), nn.Linear(80, 8),
        nn.Linear(8, 80), nn.ELU(), nn.Unflatten(1, (16, 5)), nn.ConvTranspose1d(16, 12, 4, 2, 1), nn.ELU(),
        nn.ConvTranspose1d(12, 1, 4, 2, 1),
    )  # fmt: skip
    return Case(seed=seed, model=model, data=split(x, x), optimizer=adam(3e-3), max_steps=250, **MSE)


@healthy(source="wearables: convolutions, then an LSTM, over two channels")
def h_pulses_conv_lstm_uc(seed: int) -> Case:
    class ConvRecurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(nn.Conv1d(2, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2))
            self.rnn, self.head = nn.LSTM(16, 24, batch_first=True, bidirectional=True), nn.Linear(48, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(self.conv(x).transpose(1, 2))[0].mean(1))

    return Case(seed=seed, model=ConvRecurrent(), data=pulses(seed, 1500), optimizer=adam(4e-3), max_steps=220, **CE)


class Pyramid(nn.Module):
    """Features of two resolutions, summed and read by one head for each pixel."""

    def __init__(self, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.fine, self.coarse = (
            nn.Sequential(*trunk(width)),
            nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()),
        )
        self.side, self.top = nn.Conv2d(width, width, 1), nn.Conv2d(2 * width, width, 1)
        self.head = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        return self.head(self.side(fine) + F.interpolate(self.top(self.coarse(fine)), scale_factor=2))


@healthy(source="Lin 2017: a feature pyramid for semantic segmentation")
def h_pyramid_scenes_uc(seed: int) -> Case:
    return Case(seed=seed, model=Pyramid(), data=scenes(seed, 700), optimizer=adamw(3e-3), max_steps=160, **CE)


@healthy(source="spectroscopy: principal components first, a small network after")
def h_components_of_spectra_uc(seed: int) -> Case:
    g, at = rng(795, seed), torch.arange(80)
    share = F.normalize(-torch.rand(1500, 4, generator=g).clamp_min(1e-6).log(), p=1.0, dim=1)
    pure = (-(at - torch.tensor([[15.0], [30.0], [44.0], [63.0]])).square() / 60).exp()
    x = (1 - (-1.5 * share @ pure).exp()) * (0.9 + 0.2 * torch.rand(1500, 1, generator=g))
    x = x + 0.01 * torch.randn(x.shape, generator=g)
    x = x - x[:1000].mean(0)
    scores = x @ torch.linalg.svd(x[:1000], full_matrices=False)[2][:6].T
    return Case(
        seed=seed, model=mlp([6, 48, 48, 4]), data=split(standardise(scores), standardise(share)), loss=F.mse_loss,
        metric="each_r2", optimizer=adam(2e-3), max_steps=220,
    )  # fmt: skip
