"""Healthy: classifiers of vectors, with every usual activation, depth and initialisation."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import data
from tests.zoo.case import Case, healthy
from tests.zoo.nets import CE, Lambda, ResidualMLP, adam, adamw, he, init_weights, lecun, mlp, sgd, weighted


@healthy("bad_gain", source="control: plain MLP with torch's default init, SGD with momentum")
def h_mlp_sgd(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=sgd(0.05), **CE)


@healthy("lr_too_high", source="a high but stable rate: the loss is bumpy and ends low")
def h_brisk_sgd(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=sgd(0.5, momentum=0.0), **CE)


@healthy("lr_too_low", source="a modest rate on an easy task: slow at first, good in the end")
def h_patient_sgd(seed: int) -> Case:
    model = mlp([64, 64, 10])
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=sgd(0.01), max_steps=240, **CE)


@healthy("init_vanishing", "init_exploding", source="He et al. 2015: ten ReLU layers with He init")
def h_deep_he(seed: int) -> Case:
    model = init_weights(mlp([8] + [48] * 9 + [4]), he)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.02), max_steps=260, **CE)


@healthy("init_vanishing", "bad_gain", source="eight tanh layers with Glorot init: the signal shrinks gently")
def h_deep_tanh_glorot(seed: int) -> Case:
    model = init_weights(mlp([8] + [48] * 7 + [4], nn.Tanh), nn.init.xavier_normal_)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.05), **CE)


@healthy("init_vanishing", "bad_gain", source="Klambauer et al. 2017: SELU with LeCun init, eight layers")
def h_deep_selu(seed: int) -> Case:
    model = init_weights(mlp([8] + [48] * 7 + [4], nn.SELU), lecun)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.02), **CE)


@healthy("init_vanishing", "wrong_hidden_activation", source="GELU nets contract at init; four layers train well")
def h_gelu(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 64, 4], nn.GELU), data=data.blobs(seed), optimizer=adamw(3e-3), **CE)


@healthy("init_vanishing", "wrong_hidden_activation", source="SiLU nets contract at init; four layers train well")
def h_silu(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 64, 4], nn.SiLU), data=data.blobs(seed), optimizer=adam(3e-3), **CE)


@healthy("saturation", "wrong_hidden_activation", source="LeCun et al. 1998: one sigmoid hidden layer is fine")
def h_sigmoid_shallow(seed: int) -> Case:
    return Case(seed=seed, model=mlp([2, 48, 3], nn.Sigmoid), data=data.rings(seed), optimizer=adam(3e-2), **CE)


@healthy("saturation", "wrong_hidden_activation", source="two sigmoid layers scaled for it (gain 4), Adam")
def h_sigmoid_scaled(seed: int) -> Case:
    model = init_weights(mlp([8, 48, 48, 4], nn.Sigmoid), lambda w: nn.init.xavier_normal_(w, gain=4.0))
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=adam(1e-2), **CE)


@healthy("saturation", "init_exploding", source="tanh features wide open (gain 2): some units are near +-1, and it learns")
def h_tanh_wide_open(seed: int) -> Case:
    model = init_weights(mlp([2, 64, 64, 2], nn.Tanh), lambda w: nn.init.xavier_normal_(w, gain=2.0))
    return Case(seed=seed, model=model, data=data.spirals(seed), optimizer=adam(1e-2), max_steps=260, **CE)


@healthy("dead_relu", source="a wide ReLU layer on two inputs: some units never fire on a batch")
def h_wide_relu_some_dead(seed: int) -> Case:
    model = mlp([2, 256, 32, 3])
    with torch.no_grad():
        model[0].bias[:64] = -3.0
    return Case(seed=seed, model=model, data=data.rings(seed), optimizer=adam(5e-3), **CE)


@healthy("dead_relu", "bad_bias_init", source="Goodfellow et al. 2016: small positive biases under ReLU")
def h_positive_bias(seed: int) -> Case:
    model = init_weights(mlp([8, 64, 64, 4]), he)
    for layer in weighted(model)[:-1]:
        nn.init.constant_(layer.bias, 0.1)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.05), **CE)


@healthy("bad_bias_init", "class_imbalance", source="Lin et al. 2017, Karpathy: head bias at the log prior of rare classes")
def h_prior_bias(seed: int) -> Case:
    model = mlp([6, 48, 48, 2])
    with torch.no_grad():
        model[-1].bias.copy_(torch.tensor([0.15, 0.85]).log())
    split = data.replace(data.rare_blobs(seed, rare=0.15, overlap=0.35), 1, lambda y: 1 - y)
    return Case(
        seed=seed,
        model=model,
        data=split,
        optimizer=adam(5e-3),
        loss=F.cross_entropy,
        metric="balanced_accuracy",
        val_batch_size=512,
    )


@healthy("init_symmetry", "init_vanishing", source="zero-initialised head: uniform prediction at step 0")
def h_zero_head(seed: int) -> Case:
    model = mlp([8, 64, 64, 4])
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.1), **CE)


@healthy(
    "init_symmetry", "init_vanishing", source="Goyal et al. 2017, Zhang et al. 2019 (Fixup): last layer of each branch zero"
)
def h_zero_branches(seed: int) -> Case:
    model = ResidualMLP(8, 48, 4, depth=5)
    for branch in model.branches:
        nn.init.zeros_(branch[-1].weight)
        nn.init.zeros_(branch[-1].bias)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.03), **CE)


@healthy(
    "init_vanishing",
    "frozen_by_accident",
    source="Bachlechner et al. 2020 (ReZero): branches scaled by 0 get no gradient at step 0",
)
def h_rezero(seed: int) -> Case:
    model = ResidualMLP(8, 48, 4, depth=6, scale=0.0)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=adam(3e-3), **CE)


@healthy("init_vanishing", source="Touvron et al. 2021 (LayerScale): branches scaled by 1e-4")
def h_layer_scale(seed: int) -> Case:
    model = ResidualMLP(8, 48, 4, depth=6, scale=1e-4, norm=nn.LayerNorm)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=adamw(3e-3), **CE)


@healthy("init_exploding", source="pre-norm residual stream grows with depth by design; the last norm takes it back")
def h_prenorm_growing(seed: int) -> Case:
    model = init_weights(ResidualMLP(8, 48, 4, depth=10, norm=nn.LayerNorm), he)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=adamw(2e-3), max_steps=160, **CE)


@healthy("batch_mixing", "bias_before_bn", source="Ioffe and Szegedy 2015: batch norm mixes a batch while training only")
def h_batch_norm_mlp(seed: int) -> Case:
    model = mlp([8, 64, 64, 4], norm=nn.BatchNorm1d, bias=False)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.1), **CE)


@healthy("bias_before_bn", "dead_relu", source="batch norm after the activation: the bias before it has its use")
def h_batch_norm_after_relu(seed: int) -> Case:
    layers: list[nn.Module] = []
    for a, b in ((8, 64), (64, 64)):
        layers += [nn.Linear(a, b), nn.ReLU(), nn.BatchNorm1d(b)]
    return Case(seed=seed, model=nn.Sequential(*layers, nn.Linear(64, 4)), data=data.blobs(seed), optimizer=sgd(0.1), **CE)


@healthy("bias_before_bn", "init_vanishing", source="Ba et al. 2016: layer norm takes any scale; tiny weights are harmless")
def h_layer_norm_tiny_weights(seed: int) -> Case:
    model = mlp([8, 64, 64, 4], norm=nn.LayerNorm)
    for layer in weighted(model)[:-1]:
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=adam(3e-3), **CE)


@healthy("init_exploding", "bad_gain", source="Ioffe and Szegedy 2015: batch norm forgives weights of unit variance")
def h_batch_norm_unit_weights(seed: int) -> Case:
    model = mlp([8, 64, 64, 4], norm=nn.BatchNorm1d, bias=False)
    for layer in weighted(model)[:-1]:
        nn.init.normal_(layer.weight)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=adam(1e-2), **CE)


@healthy("dropout_too_high", "overfit_no_regularisation", source="Srivastava et al. 2014: half of a wide layer dropped")
def h_dropout_half(seed: int) -> Case:
    model = mlp([8, 256, 256, 4], dropout=0.5)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=adam(3e-3), **CE)


@healthy("dropout_too_high", "dropout_active_in_eval", source="a fifth of the inputs and 0.7 of a very wide layer dropped")
def h_dropout_strong_wide(seed: int) -> Case:
    model = nn.Sequential(nn.Dropout(0.1), nn.Linear(64, 512), nn.ReLU(), nn.Dropout(0.7), nn.Linear(512, 10))
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=adam(3e-3), **CE)


@healthy("missing_activation", source="low-rank factorised layers: two linear maps in a row on purpose")
def h_low_rank(seed: int) -> Case:
    model = nn.Sequential(
        nn.Linear(64, 12, bias=False), nn.Linear(12, 96), nn.ReLU(), nn.Linear(96, 12, bias=False), nn.Linear(12, 10)
    )
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=adam(5e-3), **CE)


@healthy("missing_activation", source="softmax regression: one linear layer is a model")
def h_softmax_regression(seed: int) -> Case:
    return Case(seed=seed, model=nn.Linear(64, 10), data=data.digits(seed), optimizer=sgd(0.1), **CE)


class Gated(nn.Module):
    """Dauphin et al. 2017: each layer is gated by a sigmoid of a second linear map."""

    def __init__(self, sizes: list[int], classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, 2 * b) for a, b in pairwise(sizes))
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.glu(layer(x))
        return self.head(x)


@healthy("missing_activation", "saturation", source="gated linear units: the nonlinearity is a product")
def h_glu(seed: int) -> Case:
    return Case(seed=seed, model=Gated([8, 64, 64], 4), data=data.blobs(seed), optimizer=adam(5e-3), **CE)


class Highway(nn.Module):
    """Srivastava et al. 2015: gates start nearly closed, so that each layer starts as the identity."""

    def __init__(self, dim: int, width: int, classes: int, depth: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(dim, width), nn.Linear(width, classes)
        self.values = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for gate in self.gates:
            nn.init.constant_(gate.bias, -2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for value, gate in zip(self.values, self.gates, strict=True):
            t = gate(x).sigmoid()
            x = t * value(x).relu() + (1 - t) * x
        return self.head(x)


@healthy("bad_bias_init", "saturation", source="highway net: gate biases of -2 on purpose")
def h_highway(seed: int) -> Case:
    return Case(seed=seed, model=Highway(8, 40, 4, depth=6), data=data.blobs(seed), optimizer=adam(5e-3), **CE)


@healthy("dead_relu", "wrong_hidden_activation", source="PReLU and leaky ReLU mixed")
def h_prelu(seed: int) -> Case:
    model = nn.Sequential(nn.Linear(8, 64), nn.PReLU(), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 4))
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.05), **CE)


@healthy("wrong_hidden_activation", "missing_activation", source="Sitzmann et al. 2020: sine activations")
def h_sine(seed: int) -> Case:
    model = nn.Sequential(
        nn.Linear(2, 64), Lambda(lambda x: (3 * x).sin()), nn.Linear(64, 64), Lambda(torch.sin), nn.Linear(64, 2)
    )
    return Case(seed=seed, model=model, data=data.spirals(seed), optimizer=adam(5e-3), **CE)


@healthy("bad_gain", "init_vanishing", source="wide He-uniform net with a narrow waist")
def h_bottleneck(seed: int) -> Case:
    model = init_weights(mlp([64, 128, 6, 128, 10]), lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu"))
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=adam(3e-3), max_steps=240, **CE)
