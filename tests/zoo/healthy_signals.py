"""Healthy, second set: signals, sentences, sets and graphs, whose dimensions are moved about for a reason."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests.zoo import more_data as data
from tests.zoo.case import Case, healthy
from tests.zoo.nets import CE, MSE, adam, sgd


# ------------------------------------------------------------------------------------------ signals
class Temporal(nn.Module):
    """Bai et al. 2018: dilated causal convolutions with weight norm in residual blocks."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, width, 1)
        self.convs = nn.ModuleList(weight_norm(nn.Conv1d(width, width, 3, dilation=2**i)) for i in range(3))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, conv in enumerate(self.convs):
            x = F.relu(x + F.relu(conv(F.pad(x, (2 * 2**i, 0)))))
        return self.head(x.amax(2))


@healthy("bad_gain", "dead_relu", "init_exploding", source="Bai et al. 2018: a temporal convolutional net with weight norm")
def h_temporal(seed: int) -> Case:
    return Case(seed=seed, model=Temporal(), data=data.pulses(seed), optimizer=adam(5e-3), max_steps=160, **CE)


def pulse_net(act: type[nn.Module] = nn.ReLU, norm: type[nn.Module] | None = nn.BatchNorm1d) -> nn.Sequential:
    """Three 1-D convolutions, max pooling, a head."""
    layers: list[nn.Module] = []
    for a, b, k in ((2, 12, 7), (12, 24, 5), (24, 24, 3)):
        layers += [nn.Conv1d(a, b, k, padding=k // 2, bias=norm is None), *([norm(b)] if norm else []), act()]
        layers.append(nn.MaxPool1d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(120, 3))


@healthy("bias_before_bn", "lr_too_high", source="1-D convolutions with batch norm, SGD at 0.1")
def h_pulses(seed: int) -> Case:
    return Case(seed=seed, model=pulse_net(), data=data.pulses(seed), optimizer=sgd(0.1), max_steps=160, **CE)


@healthy("bad_gain", "init_vanishing", source="1-D convolutions without norm, default init, Adam")
def h_pulses_plain(seed: int) -> Case:
    return Case(
        seed=seed, model=pulse_net(nn.LeakyReLU, None), data=data.pulses(seed), optimizer=adam(4e-3), max_steps=200, **CE
    )


class Mixer(nn.Module):
    """Tolstikhin et al. 2021: an MLP over time, an MLP over channels, with transposes between."""

    def __init__(self, patches: int = 10, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.over_time = nn.Sequential(nn.Linear(patches, 20), nn.GELU(), nn.Linear(20, patches))
        self.over_width = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))
        self.head = nn.Linear(width, 3)

    def patches(self, x: Tensor) -> Tensor:
        return x.view(len(x), 2, 10, 4).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.patches(x))
        x = x + self.over_time(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.over_width(self.norm2(x))
        return self.head(x.mean(1))


@healthy("batch_mixing", source="Tolstikhin et al. 2021: MLP-Mixer, transposes and views of one sample's patches")
def h_mixer(seed: int) -> Case:
    return Case(seed=seed, model=Mixer(), data=data.pulses(seed), optimizer=adam(8e-3), max_steps=240, **CE)


class TimeFirst(nn.Module):
    """A GRU that is given `[length, batch, 2]`; the last state is read out."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(2, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0].amax(0))


@healthy("batch_mixing", "shape_broadcast", source="the collate function stacks time first, as torch's recurrent nets want it")
def h_collated_time_first(seed: int) -> Case:
    def collate(samples: list[Any]) -> list[Tensor]:
        return [torch.stack([x.T for x, _ in samples], 1), torch.stack([y for _, y in samples])]

    return Case(
        seed=seed, model=TimeFirst(), data=data.pulses(seed), optimizer=adam(1e-2), max_steps=200, collate=collate, **CE
    )


class Forecast(nn.Module):
    """The last value plus what an LSTM adds to it; the window becomes steps inside."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 24, batch_first=True), nn.Linear(24, 2)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1:] + self.head(self.lstm(x.unsqueeze(2))[0][:, -1])


@healthy("init_symmetry", "shape_broadcast", source="forecasting the change only: head at zero, last value added")
def h_forecast(seed: int) -> Case:
    return Case(seed=seed, model=Forecast(), data=data.swings(seed), optimizer=adam(1e-2), max_steps=200, **MSE)


class Decomposed(nn.Module):
    """Zeng et al. 2023 (DLinear): one linear map of the trend and one of the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.trend, self.rest = nn.Linear(20, 2), nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        trend = F.avg_pool1d(F.pad(x, (2, 2), "replicate"), 5, stride=1)
        return self.trend(trend) + self.rest(x - trend)


@healthy("missing_activation", source="Zeng et al. 2023: DLinear, a linear model that is meant to be one")
def h_decomposed_linear(seed: int) -> Case:
    return Case(seed=seed, model=Decomposed(), data=data.swings(seed), optimizer=adam(2e-2), max_steps=250, **MSE)


class DiagonalStateSpace(nn.Module):
    """Gu et al. 2022: linear recurrences with one decay per channel, gated afterwards."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.into, self.gate, self.head = nn.Linear(1, width), nn.Linear(1, width), nn.Linear(width, 2)
        self.decay = nn.Parameter(torch.linspace(-2, 3, width))
        self.turn = nn.Parameter(torch.linspace(0, 1.5, width))

    def forward(self, x: Tensor) -> Tensor:
        lags = torch.arange(x.shape[1] - 1, -1, -1)[:, None]
        kernel = (lags * F.logsigmoid(self.decay)).exp() * (lags * self.turn).cos()
        state = (self.into(x[:, :, None]) * kernel).sum(1)
        return self.head(state * F.silu(self.gate(x[:, -1:])) + state)


@healthy("missing_activation", "init_exploding", "saturation", source="Gu et al. 2022: a diagonal state-space layer")
def h_state_space(seed: int) -> Case:
    return Case(seed=seed, model=DiagonalStateSpace(), data=data.swings(seed), optimizer=adam(1e-2), max_steps=250, **MSE)


class Tagger(nn.Module):
    """A bidirectional LSTM with a class per step, `[N, C, T]`."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0]).permute(0, 2, 1)


@healthy("batch_mixing", "saturation", source="a label per step: bidirectional LSTM, permuted for the loss")
def h_tagging(seed: int) -> Case:
    return Case(seed=seed, model=Tagger(), data=data.regimes(seed), optimizer=adam(1e-2), max_steps=120, **CE)


class Unrolled(nn.Module):
    """A cell stepped in a Python loop, orthogonal recurrent weights, tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.RNNCell(2, 24), nn.Linear(24, 3)
        nn.init.orthogonal_(self.cell.weight_hh)

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = x.new_zeros(len(x), 24), []
        for step in x.unbind(1):
            state = self.cell(step, state)
            outputs.append(self.head(state))
        return torch.stack(outputs, 2)


@healthy("batch_mixing", "init_exploding", source="a recurrent cell unrolled by hand, gradients clipped at 1")
def h_unrolled_cell(seed: int) -> Case:
    return Case(
        seed=seed,
        model=Unrolled(),
        data=data.regimes(seed),
        optimizer=sgd(0.1),
        max_steps=150,
        trainer={"gradient_clip_val": 1.0},
        **CE,
    )
