"""Healthy: vectors as they come, whatever their units, and what is told of them: classes, amounts, several labels at once."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import data
from tests.zoo.case import Case, healthy
from tests.zoo.nets import BCE, CE, ResidualMLP, adam, adamw, he, init_weights, lecun, mlp, normal, sgd, weighted


@healthy("wrong_last_activation", "wrong_loss", source="log-softmax in the model and NLL: the older spelling of cross-entropy")
def h_log_softmax_nll(seed: int) -> Case:
    model = mlp([64, 64, 64, 10], last=nn.LogSoftmax(dim=1))
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=sgd(0.05), loss=F.nll_loss, metric="accuracy")


@healthy("batch_mixing", "wrong_last_activation", source="validated a few samples at a time, as it will be served")
def h_served_in_fours(seed: int) -> Case:
    model = mlp([8, 64, 64, 4], last=nn.LogSoftmax(dim=1))
    split = data.blobs(seed)
    return Case(seed=seed, model=model, data=split, optimizer=sgd(0.05), loss=F.nll_loss, metric="accuracy", val_batch_size=4)


@healthy("frozen_by_accident", "bad_gain", source="six narrow ReLU layers with He init")
def h_narrow_deep(seed: int) -> Case:
    model = init_weights(mlp([64] + [20] * 5 + [10]), he)
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=sgd(0.02), max_steps=260, **CE)


@healthy("wrong_last_activation", "wrong_loss", source="log-softmax twice is once: cross-entropy of log-probabilities is exact")
def h_log_softmax_ce(seed: int) -> Case:
    model = mlp([8, 64, 64, 4], last=nn.LogSoftmax(dim=1))
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.05), **CE)


@healthy("wrong_loss", source="one logit and BCE with logits")
def h_binary_logit(seed: int) -> Case:
    return Case(seed=seed, model=mlp([6, 64, 64, 1]), data=data.binary(seed), optimizer=adam(5e-3), **BCE)


@healthy("wrong_loss", "class_imbalance", source="several yes-or-no labels at once: BCE with logits, unequal frequencies")
def h_multi_label(seed: int) -> Case:
    return Case(seed=seed, model=mlp([10, 96, 96, 6]), data=data.attributes(seed), optimizer=adam(5e-3), **BCE)


@healthy("bad_gain", "init_symmetry", source="Le et al. 2015: identity initialisation of square ReLU layers")
def h_identity_init(seed: int) -> Case:
    model = mlp([8, 64, 64, 64, 4])
    for layer in weighted(model)[1:-1]:
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.05), **CE)


@healthy("bad_gain", "init_vanishing", source="Saxe et al. 2014: orthogonal init, tanh, ten layers")
def h_orthogonal_tanh(seed: int) -> Case:
    model = init_weights(mlp([8] + [40] * 9 + [4], nn.Tanh), nn.init.orthogonal_)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.03), **CE)


@healthy("init_vanishing", source="two hidden layers with N(0, 0.05): small and good enough")
def h_small_normal_shallow(seed: int) -> Case:
    model = init_weights(mlp([64, 64, 10]), normal(0.05))
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=sgd(0.1), **CE)


@healthy("unnormalised_input", source="binary features in {0, 1}: not standardised, and fine")
def h_binary_features(seed: int) -> Case:
    split = data.replace(data.digits(seed), 0, lambda x: (x > 0).float())
    return Case(seed=seed, model=mlp([64, 64, 10]), data=split, optimizer=adam(5e-3), **CE)


@healthy("unnormalised_input", "bad_data", source="pixels in [0, 1], several of them always zero")
def h_unit_pixels(seed: int) -> Case:
    split = data.replace(data.digits(seed), 0, lambda x: (x - x.min()) / (x.max() - x.min()))
    return Case(seed=seed, model=mlp([64, 64, 10]), data=split, optimizer=sgd(0.2), **CE)


@healthy("unnormalised_input", source="raw physical units behind a batch norm on the input")
def h_raw_behind_batch_norm(seed: int) -> Case:
    split = data.replace(data.blobs(seed), 0, lambda x: 300 + x * torch.logspace(-1, 3, 8))
    model = nn.Sequential(nn.BatchNorm1d(8), mlp([8, 64, 64, 4]))
    return Case(seed=seed, model=model, data=split, optimizer=sgd(0.05), **CE)


@healthy(
    "labels_broken",
    "overfit_no_regularisation",
    source="a fifth of the labels is noise: the loss stays high, the accuracy does not suffer",
)
def h_noisy_labels(seed: int) -> Case:
    train, val = data.blobs(seed)
    x, y = train.tensors
    g = data.rng(90, seed)
    y = torch.where(torch.rand(len(y), generator=g) < 0.2, torch.randint(4, y.shape, generator=g), y)
    return Case(seed=seed, model=mlp([8, 48, 48, 4]), data=(type(train)(x, y), val), optimizer=adam(3e-3), **CE)


@healthy("labels_broken", "class_imbalance", source="forty classes, of which a batch of 32 shows less than half")
def h_many_classes(seed: int) -> Case:
    split = data.blobs(seed, classes=40, per_class=1, spread=0.25)
    return Case(seed=seed, model=mlp([8, 96, 96, 40]), data=split, optimizer=adam(5e-3), **CE)


@healthy("saturation", source="tanh features on spirals")
def h_spirals_tanh(seed: int) -> Case:
    model = init_weights(mlp([2, 64, 64, 2], nn.Tanh), nn.init.xavier_normal_)
    return Case(seed=seed, model=model, data=data.spirals(seed), optimizer=adam(1e-2), max_steps=260, **CE)


@healthy("init_vanishing", "init_exploding", source="twenty ReLU layers with He init")
def h_deep_he_twenty(seed: int) -> Case:
    model = init_weights(mlp([8] + [40] * 19 + [4]), he)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.01), max_steps=260, **CE)


@healthy("init_vanishing", "bad_gain", source="SELU with LeCun init, sixteen layers, SGD")
def h_deep_selu_sgd(seed: int) -> Case:
    model = init_weights(mlp([8] + [40] * 15 + [4], nn.SELU), lecun)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.01), **CE)


@healthy("init_exploding", "init_vanishing", source="twenty unnormalised residual branches, each scaled down from the start")
def h_residual_scaled(seed: int) -> Case:
    model = ResidualMLP(8, 40, 4, depth=20, scale=0.05)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.01), **CE)


@healthy("lr_too_high", source="digits, plain MLP, SGD")
def h_digits_sgd(seed: int) -> Case:
    return Case(seed=seed, model=mlp([64, 64, 64, 10]), data=data.digits(seed), optimizer=sgd(0.05), **CE)


@healthy("wrong_loss", source="one logit, BCE with logits, SGD")
def h_binary_logit_sgd(seed: int) -> Case:
    return Case(seed=seed, model=mlp([6, 64, 64, 1]), data=data.binary(seed), optimizer=sgd(0.1), max_steps=240, **BCE)


@healthy("wrong_loss", "wrong_last_activation", source="a sigmoid unit and BCE on probabilities: a pair that belongs together")
def h_binary_sigmoid(seed: int) -> Case:
    model = mlp([6, 64, 64, 1], last=nn.Sigmoid())
    return Case(
        seed=seed,
        model=model,
        data=data.binary(seed),
        optimizer=adam(5e-3),
        loss=F.binary_cross_entropy,
        metric="probability_accuracy",
    )


class Prototypes(nn.Module):
    """Snell et al. 2017: the logit of a class falls with the distance to its prototype; here the prototypes are learnt."""

    def __init__(self, dim: int, code: int, classes: int) -> None:
        super().__init__()
        self.body, self.prototypes = mlp([dim, 32, code]), nn.Parameter(0.01 * torch.randn(classes, code))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(self.body(x), self.prototypes)


@healthy("not_in_optimizer", "init_symmetry", source="learnt prototypes, all near the origin at first")
def h_prototypes(seed: int) -> Case:
    return Case(seed=seed, model=Prototypes(64, 2, 10), data=data.digits(seed), optimizer=adam(1e-2), max_steps=260, **CE)


@healthy("overfit_no_regularisation", "dropout_too_high", source="few digits with noisy labels, dropout, decay and a short run")
def h_noisy_digits_regularised(seed: int) -> Case:
    train, val = data.digits(seed)
    x, y = train.tensors
    wrong = torch.rand(len(y), generator=data.rng(98, seed)) < 0.15
    y = torch.where(wrong, y[torch.randperm(len(y), generator=data.rng(99, seed))], y)
    model = mlp([64, 128, 10], dropout=0.5)
    return Case(seed=seed, model=model, data=(type(train)(x, y), val), optimizer=adamw(3e-3, weight_decay=0.1), **CE)
