"""Healthy: regression."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import data
from tests.zoo.case import Case, healthy
from tests.zoo.nets import MSE, Lambda, adam, adamw, mlp, sgd


@healthy("init_vanishing", "shape_broadcast", source="control: one standardised output")
def h_regression(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 1]), data=data.surface(seed), optimizer=adam(5e-3), **MSE)


@healthy("lr_too_high", source="regression by SGD with momentum")
def h_regression_sgd(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 1]), data=data.surface(seed), optimizer=sgd(0.03), **MSE)


@healthy("shape_broadcast", source="one output squeezed to the shape of the target, [N]")
def h_regression_squeezed(seed: int) -> Case:
    split = data.replace(data.surface(seed), 1, lambda y: y[:, 0])
    return Case(seed=seed, model=nn.Sequential(mlp([8, 64, 64, 1]), nn.Flatten(0)), data=split, optimizer=adam(5e-3), **MSE)


@healthy("bad_gain", source="three outputs at once")
def h_several_outputs(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 3]), data=data.several(seed), optimizer=adam(5e-3), **MSE)


@healthy("unnormalised_target", source="prices in thousands by Adam, with a head that starts at the mean")
def h_prices_with_offset(seed: int) -> Case:
    model = nn.Sequential(mlp([8, 64, 64, 1]), Lambda(lambda z: 250_000 + 80_000 * z))
    return Case(seed=seed, model=model, data=data.houses(seed), optimizer=adam(5e-3), **MSE)


@healthy("unnormalised_target", "lr_too_high", source="targets around 20 +- 8 (degrees): Adam gets there")
def h_degrees(seed: int) -> Case:
    split = data.replace(data.surface(seed), 1, lambda y: 20 + 8 * y)
    return Case(seed=seed, model=mlp([8, 96, 96, 1]), data=split, optimizer=adam(1e-2), max_steps=300, **MSE)


@healthy("unnormalised_target", "bad_bias_init", source="Karpathy: the head's bias starts at the mean of the target")
def h_bias_at_mean(seed: int) -> Case:
    split = data.replace(data.surface(seed), 1, lambda y: 50 + 5 * y)
    model = mlp([8, 64, 64, 1])
    nn.init.constant_(model[-1].bias, 50.0)
    return Case(seed=seed, model=model, data=split, optimizer=adam(1e-2), max_steps=260, **MSE)


@healthy("wrong_last_activation", source="tanh output for targets inside (-1, 1)")
def h_tanh_output(seed: int) -> Case:
    split = data.replace(data.surface(seed), 1, lambda y: 0.9 * (y / 1.5).tanh())
    return Case(seed=seed, model=mlp([8, 64, 64, 1], last=nn.Tanh()), data=split, optimizer=adam(5e-3), **MSE)


@healthy("wrong_last_activation", source="softplus output for positive targets")
def h_softplus_output(seed: int) -> Case:
    split = data.replace(data.surface(seed), 1, lambda y: (0.7 * y).exp())
    return Case(
        seed=seed, model=mlp([8, 64, 64, 1], last=nn.Softplus()), data=split, optimizer=adam(5e-3), max_steps=260, **MSE
    )


@healthy("wrong_last_activation", "saturation", source="sigmoid output and squared error for shares in [0, 1]")
def h_sigmoid_share(seed: int) -> Case:
    split = data.replace(data.surface(seed), 1, lambda y: (1.5 * y).sigmoid())
    return Case(seed=seed, model=mlp([8, 64, 64, 1], last=nn.Sigmoid()), data=split, optimizer=adam(5e-3), **MSE)


@healthy("loss_reduction", "wrong_loss", source="Huber loss with outliers in the targets")
def h_huber_outliers(seed: int) -> Case:
    train, val = data.surface(seed)
    x, y = train.tensors
    outlier = torch.rand(y.shape, generator=data.rng(91, seed)) < 0.02
    train = type(train)(x, y + outlier * 15 * torch.randn(y.shape, generator=data.rng(92, seed)))
    return Case(seed=seed, model=mlp([8, 64, 64, 1]), data=(train, val), optimizer=adam(5e-3), loss=F.huber_loss, metric="r2")


@healthy("wrong_loss", "init_vanishing", source="mean absolute error")
def h_absolute_error(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 1]), data=data.surface(seed), optimizer=adam(5e-3), loss=F.l1_loss, metric="r2"
    )


@healthy("missing_activation", source="linear data, linear model: least squares by SGD")
def h_least_squares(seed: int) -> Case:
    g = data.rng(93, seed)
    x = torch.randn(1200, 12, generator=g)
    y = x @ torch.randn(12, 1, generator=g) / 12**0.5 + 0.1 * torch.randn(1200, 1, generator=g)
    return Case(seed=seed, model=nn.Linear(12, 1), data=data.split(x, y), optimizer=sgd(0.02), **MSE)


@healthy("wrong_hidden_activation", "saturation", source="one wiggly curve: tanh features")
def h_curve_tanh(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([1, 64, 64, 1], nn.Tanh), data=data.curve(seed), optimizer=adam(1e-2), max_steps=300, **MSE
    )


class FourierFeatures(nn.Module):
    """Tancik et al. 2020: fixed random frequencies as a buffer."""

    def __init__(self, dim: int, width: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", scale * torch.randn(dim, width))

    def forward(self, x: Tensor) -> Tensor:
        angle = x @ self.frequencies
        return torch.cat([angle.sin(), angle.cos()], 1)


@healthy("frozen_by_accident", "not_in_optimizer", source="random Fourier features: weights that are a buffer by design")
def h_fourier_features(seed: int) -> Case:
    model = nn.Sequential(FourierFeatures(1, 32, 2.0), mlp([64, 48, 1]))
    return Case(seed=seed, model=model, data=data.curve(seed), optimizer=adam(5e-3), **MSE)


@healthy("unnormalised_input", source="raw inputs standardised by constants inside the model")
def h_raw_inside_standardised(seed: int) -> Case:
    split = data.replace(data.surface(seed), 0, lambda x: 1000 + 200 * x)
    model = nn.Sequential(Lambda(lambda x: (x - 1000) / 200), mlp([8, 64, 64, 1]))
    return Case(seed=seed, model=model, data=split, optimizer=adam(5e-3), **MSE)


@healthy("weight_decay_too_strong", source="AdamW with decay 0.05")
def h_regression_decay(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 1]), data=data.surface(seed), optimizer=adamw(5e-3, weight_decay=0.05), **MSE)


@healthy("dropout_too_high", "dropout_active_in_eval", source="two fifths of a wide regression net dropped")
def h_regression_dropout(seed: int) -> Case:
    model = mlp([8, 192, 192, 1], dropout=0.4)
    return Case(seed=seed, model=model, data=data.surface(seed), optimizer=adam(4e-3), **MSE)
